//! Two trust domains that know each other's bundles, or no longer do.

use super::Spire;
use std::fs;

impl Spire {
    /// Has the server take over and follow the other trust domain's bundle, from its SPIFFE bundle
    /// endpoint (`https_spiffe`). Entries that name the domain then come with it.
    pub async fn federate(&self, other: &Self) {
        // What another test left of another server of that name.
        for words in forgetting(&other.trust_domain) {
            let _ = self.try_server(&as_words(&words), None).await;
        }
        let bundle = other.server(&["bundle", "show", "-format", "spiffe"]).await;
        let file = self.path("foreign.bundle");
        fs::write(&file, bundle).unwrap();
        let file = file.display().to_string();
        let (domain, url) = (&other.trust_domain, other.bundle_endpoint());
        let endpoint = format!("spiffe://{domain}/spire/server");
        self.server(&[
            "federation",
            "create",
            "-trustDomain",
            domain,
            "-bundleEndpointProfile",
            "https_spiffe",
            "-bundleEndpointURL",
            &url,
            "-endpointSpiffeID",
            &endpoint,
            "-trustDomainBundleFormat",
            "spiffe",
            "-trustDomainBundlePath",
            &file,
        ])
        .await;
    }

    /// Fetches the other trust domain's bundle from its endpoint now, which else takes minutes.
    pub async fn fetch_bundle_of(&self, other: &Self) {
        let id = format!("spiffe://{}", other.trust_domain);
        self.server(&["federation", "refresh", "-id", &id]).await;
    }

    /// Forgets the other trust domain, its bundle, and that entries named it.
    pub async fn part_with(&self, other: &Self) {
        for words in forgetting(&other.trust_domain) {
            self.server(&as_words(&words)).await;
        }
    }
}

fn forgetting(trust_domain: &str) -> [String; 2] {
    let id = format!("spiffe://{trust_domain}");
    [
        format!("federation delete -id {id}"),
        format!("bundle delete -id {id} -mode dissociate"),
    ]
}

fn as_words(command: &str) -> Vec<&str> {
    command.split(' ').collect()
}
