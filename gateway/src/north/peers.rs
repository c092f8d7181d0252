//! Who is connected, and what that rests on.

use super::{Service, gate::About, unread::Kept};
use crate::{
    engine::rfc3339,
    peers::{Side, Standing},
    policy::Method,
};
use portarium_protocols::{ConnectedPeer, grpc::pb};
use prost::Message as _;
use tonic::{Request, Status};

/// An answer this long takes no further connections: most clients take no more than 4 MiB.
const MAX_BYTES: usize = 3 << 20;

impl Service {
    pub(super) fn peers(
        &self,
        request: &Request<pb::ListPeersRequest>,
    ) -> Result<pb::ListPeersResponse, Status> {
        let method = Method::ListPeers;
        let principal = self.gate.enter(request, method)?;
        let place = self.place(&self.lists, &principal, method, About::default())?;
        if let Some(kept) = request.extensions().get::<Kept>() {
            kept.keep(place);
        }
        let answer = told(&(self.standing)(), &request.get_ref().authority_id);
        self.gate
            .shown(&principal, method, About::default(), "answered");
        Ok(answer)
    }
}

fn told(standing: &Standing, authority: &str) -> pb::ListPeersResponse {
    let wanted = |connected: &ConnectedPeer| {
        let mut authorities = connected.peer.authorities.iter();
        authority.is_empty() || authorities.any(|id| id.as_ref() == authority)
    };
    let mut answer = pb::ListPeersResponse::default();
    let mut bytes = 0;
    for side in &standing.sides {
        for connected in side.peers.iter().filter(|connected| wanted(connected)) {
            if bytes > MAX_BYTES {
                answer.omitted += 1;
                continue;
            }
            let peer = message(standing, side, connected);
            bytes += peer.encoded_len();
            answer.peers.push(peer);
        }
    }
    let ids = standing.authorities.iter().map(|(_, id)| id.to_string());
    answer.authority_ids = ids.collect();
    answer
}

fn message(standing: &Standing, side: &Side, connected: &ConnectedPeer) -> pb::Peer {
    let peer = &connected.peer;
    let mut ids = peer.authorities.iter().map(ToString::to_string);
    pb::Peer {
        direction: side.direction.as_str().into(),
        adapter: side.adapter.clone(),
        spiffe_id: peer.spiffe_id.to_string(),
        trust_domain: peer.spiffe_id.trust_domain().to_string(),
        remote_address: connected.remote.to_string(),
        authority_id: ids.next().unwrap_or_default(),
        intermediate_ids: ids.collect(),
        in_bundle: standing.bundled(connected).is_some(),
        not_after: rfc3339(peer.not_after),
        connected_at: rfc3339(connected.since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::tests::{resting, standing};

    #[test]
    fn each_connection_is_told_with_what_it_rests_on() {
        let answer = told(&standing(), "");
        assert_eq!(answer.authority_ids, ["0a", "0b", "0c"]);
        let of = |id: &str| {
            answer
                .peers
                .iter()
                .find(|peer| peer.spiffe_id.ends_with(id))
        };
        let told = pb::Peer {
            direction: "north".into(),
            adapter: "grpc".into(),
            spiffe_id: "spiffe://a.b/two".into(),
            trust_domain: "a.b".into(),
            remote_address: "192.0.2.7:50051".into(),
            authority_id: "0b".into(),
            intermediate_ids: vec!["1b".into()],
            in_bundle: true,
            not_after: of("/two")
                .map(|peer| peer.not_after.clone())
                .unwrap_or_default(),
            connected_at: "1970-01-01T00:00:00Z".into(),
        };
        assert_eq!(of("/two"), Some(&told));
        assert!(of("/broker").is_some_and(|peer| peer.direction == "south"));
        // Of another trust domain, of no bundle, not known.
        for id in ["/five", "/four", "/six"] {
            assert!(of(id).is_some_and(|peer| !peer.in_bundle), "{id}");
        }
    }

    #[test]
    fn an_authority_selects_those_below_it_also_by_an_intermediate() {
        for (authority, count) in [("0b", 2), ("1b", 1), ("0c", 2), ("0", 0), ("ff", 0)] {
            let answer = told(&standing(), authority);
            assert_eq!(
                (answer.peers.len(), answer.omitted),
                (count, 0),
                "{authority}"
            );
        }
    }

    #[test]
    fn an_answer_stays_within_what_clients_take_and_says_what_is_missing() {
        let long = format!("spiffe://a.b/{}", "x".repeat(1_900));
        let mut standing = standing();
        standing.sides[0].peers = vec![resting(&long, &["0a"]); 3_000];
        let answer = told(&standing, "0a");
        let bytes = answer.encoded_len();
        assert!((MAX_BYTES - 16_384..4 << 20).contains(&bytes), "{bytes}");
        assert_eq!(answer.peers.len() + answer.omitted as usize, 3_000);
    }
}
