//! X.509 authorities, and what is minted by them.

use super::{
    Spire,
    command::{call, parsed, string},
};
use crate::until;
use base64ct::{Base64, Encoding as _};
use std::{collections::BTreeSet, fs, path::Path, time::Duration};
use x509_parser::pem::parse_x509_pem;

impl Spire {
    /// Makes the next X.509 authority, and waits until the agent serves it.
    pub async fn prepare(&self) {
        let mut before = BTreeSet::new();
        until("the agent to answer", async || {
            before = self.authorities().await;
            !before.is_empty()
        })
        .await;
        self.authority("prepare", &[]).await;
        // The one that was revoked last may go meanwhile.
        let next = async || !self.authorities().await.is_subset(&before);
        until("the agent to serve the next authority", next).await;
    }

    /// Has the prepared authority sign from now on.
    pub async fn activate(&self) {
        let next = self.authority_in("prepared").await;
        self.authority("activate", &["-authorityID", &next]).await;
    }

    /// Has everything issued anew that the authority before signed, and waits for that.
    pub async fn taint(&self) {
        let leaves = async || -> Option<Vec<Vec<u8>>> {
            let context = self.fetch().await.ok()?;
            let leaves = context.svids().iter().map(|svid| svid.leaf().as_bytes());
            Some(leaves.map(<[u8]>::to_vec).collect())
        };
        let mut before = None;
        until("the agent to answer", async || {
            before = leaves().await;
            before.is_some()
        })
        .await;
        let before = before.unwrap();
        let old = self.authority_in("old").await;
        self.authority("taint", &["-authorityID", &old]).await;
        // Who asks meanwhile is let wait until all are there anew.
        until("the agent to serve new SVIDs", async || {
            let now = leaves().await;
            now.is_some_and(|now| !now.iter().any(|leaf| before.contains(leaf)))
        })
        .await;
    }

    /// Takes the tainted authority out of the bundle.
    pub async fn revoke(&self) {
        let old = self.authority_in("old").await;
        self.authority("revoke", &["-authorityID", &old]).await;
    }

    async fn authority(&self, what: &str, flags: &[&str]) -> String {
        let command = ["localauthority", "x509", what, "-output", "json"];
        self.server(&[&command, flags].concat()).await
    }

    /// The id of the authority that signs.
    pub async fn signing(&self) -> String {
        self.authority_in("active").await
    }

    /// The id of the authority in this state.
    async fn authority_in(&self, state: &str) -> String {
        let shown = parsed(&self.authority("show", &[]).await);
        string(&shown[state]["authority_id"])
    }

    /// The authorities that the agent serves for all trust domains.
    async fn authorities(&self) -> BTreeSet<Vec<u8>> {
        let Ok(context) = self.fetch().await else {
            return BTreeSet::new();
        };
        let bundles = context.bundle_set().iter();
        let authorities = bundles.flat_map(|(_, bundle)| bundle.authorities());
        authorities.map(|der| der.as_bytes().to_vec()).collect()
    }

    /// Mints an SVID that nobody renews: `svid.pem`, `key.pem` and `bundle.pem` in this folder.
    pub fn mint(&self, spiffe_id: &str, dns_names: &[String], ttl: Duration, dir: &Path) {
        let ttl = format!("{}s", ttl.as_secs());
        let dir = dir.display().to_string();
        let mut words = vec![
            "x509",
            "mint",
            "-spiffeID",
            spiffe_id,
            "-ttl",
            &ttl,
            "-write",
            &dir,
        ];
        for name in dns_names {
            words.extend(["-dns", name]);
        }
        call(&self.path("server.sock"), &words, None).unwrap();
    }

    /// The only X.509 authority there is (DER), and its private key (PKCS#8), as the server keeps
    /// it on the disk: for who has stolen it.
    pub fn authority_and_key(&self) -> (Vec<u8>, Vec<u8>) {
        let bundle = fs::read(self.path("bundle.pem")).unwrap();
        let (_, authority) = parse_x509_pem(&bundle).unwrap();
        let keys = fs::read_to_string(self.path("server/keys.json")).unwrap();
        let key = string(&parsed(&keys)["keys"]["x509-CA-A"]);
        (authority.contents, Base64::decode_vec(&key).unwrap())
    }
}
