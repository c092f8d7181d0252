//! `peers`

use super::{
    Done,
    client::{ClientArgs, call, request},
    output::{clean, line, remark, table},
};
use clap::Args;
use portarium_protocols::grpc::pb;
use serde_json::json;

#[derive(Debug, Args)]
pub(super) struct PeersArgs {
    #[command(flatten)]
    client: ClientArgs,
    /// Only those that rest on this authority, as `spire-server localauthority x509 show` names it:
    /// who would be cut off if it were revoked.
    #[arg(long, value_name = "ID", value_parser = authority_id)]
    authority: Option<String>,
}

/// As OpenSSL prints key ids, too.
fn authority_id(text: &str) -> Result<String, String> {
    let id: String = text.chars().filter(|c| *c != ':').collect();
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err("an authority's id is hexadecimal".to_owned());
    }
    Ok(id.to_ascii_lowercase())
}

impl PeersArgs {
    pub(super) async fn execute(self) -> anyhow::Result<Done> {
        let mut client = self.client.connect().await?;
        let authority = self.authority.unwrap_or_default();
        let message = pb::ListPeersRequest {
            authority_id: authority.clone(),
        };
        let answer = call(|| client.list_peers(request(message))).await?;
        let mut peers = answer.peers;
        peers.sort_by(|a, b| order(a).cmp(&order(b)));
        if self.client.json {
            for peer in &peers {
                line(peer_json(peer))?;
            }
        } else if !peers.is_empty() {
            line(peers_told(&peers))?;
        } else if authority.is_empty() {
            line("no connection has shown an identity")?;
        } else {
            line(format!("no connection rests on authority {authority}"))?;
        }
        if answer.omitted > 0 {
            let more = answer.omitted;
            remark(format!(
                "and {more} more, which the answer has no room for; select some with --authority"
            ));
        }
        if peers.is_empty() && !authority.is_empty() && !answer.authority_ids.contains(&authority) {
            let known = answer.authority_ids.join(", ");
            remark(format!(
                "no bundle holds authority {authority}; those of now are {known}"
            ));
        }
        Ok(Done::Well)
    }
}

fn order(peer: &pb::Peer) -> impl Ord + '_ {
    let pb::Peer {
        direction,
        adapter,
        spiffe_id,
        connected_at,
        remote_address,
        ..
    } = peer;
    (direction, adapter, spiffe_id, connected_at, remote_address)
}

fn peers_told(peers: &[pb::Peer]) -> String {
    let row = |peer: &pb::Peer| {
        [
            clean(&peer.direction),
            clean(&peer.adapter),
            clean(&peer.spiffe_id),
            clean(&peer.remote_address),
            to_the_second(&peer.connected_at),
            to_the_second(&peer.not_after),
            authority(peer),
        ]
    };
    let rows: Vec<_> = peers.iter().map(row).collect();
    let head = [
        "SIDE",
        "ADAPTER",
        "PEER",
        "ADDRESS",
        "CONNECTED",
        "CERTIFICATE ENDS",
        "AUTHORITY",
    ];
    table(head, &rows)
}

/// That of the bundle first, then those below it.
fn authority(peer: &pb::Peer) -> String {
    if peer.authority_id.is_empty() {
        return "not known".to_owned();
    }
    let ids = [&peer.authority_id]
        .into_iter()
        .chain(&peer.intermediate_ids);
    let ids: Vec<_> = ids.map(|id| clean(id)).collect();
    let gone = if peer.in_bundle {
        ""
    } else {
        ", not in the bundle"
    };
    format!("{}{gone}", ids.join(" > "))
}

/// RFC 3339 without its fraction, for people.
fn to_the_second(time: &str) -> String {
    let time = clean(time);
    match time.split_once('.') {
        Some((second, _)) => format!("{second}Z"),
        None => time,
    }
}

fn peer_json(peer: &pb::Peer) -> serde_json::Value {
    json!({
        "direction": peer.direction,
        "adapter": peer.adapter,
        "spiffe_id": peer.spiffe_id,
        "trust_domain": peer.trust_domain,
        "remote_address": peer.remote_address,
        "authority_id": peer.authority_id,
        "intermediate_ids": peer.intermediate_ids,
        "in_bundle": peer.in_bundle,
        "not_after": peer.not_after,
        "connected_at": peer.connected_at,
    })
}
