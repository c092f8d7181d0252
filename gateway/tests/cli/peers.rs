//! Who is connected.

use crate::gateway::World;
use portarium_protocols::grpc::pb;
use serde_json::Value;

const OLD: &str = "19db3d8d62dabd8b5bee0b0bf2f5e4b2e5b0a3c1";

fn peer(direction: &str, name: &str) -> pb::Peer {
    pb::Peer {
        direction: direction.into(),
        adapter: "grpc".into(),
        spiffe_id: format!("spiffe://a.b/{name}"),
        trust_domain: "a.b".into(),
        remote_address: "192.0.2.7:4711".into(),
        authority_id: OLD.into(),
        intermediate_ids: Vec::new(),
        in_bundle: true,
        not_after: "2026-01-02T04:00:00Z".into(),
        connected_at: "2026-01-02T03:04:05.678Z".into(),
    }
}

fn answer(peers: Vec<pb::Peer>) -> pb::ListPeersResponse {
    pb::ListPeersResponse {
        peers,
        omitted: 0,
        authority_ids: vec![OLD.into(), "ff".into()],
    }
}

#[tokio::test]
async fn connections_are_told_in_order_with_what_their_peers_rest_on() {
    let world = World::new().await;
    let below = pb::Peer {
        intermediate_ids: vec!["1b".into()],
        in_bundle: false,
        ..peer("north", "two\u{1b}[2J")
    };
    let unknown = pb::Peer {
        authority_id: String::new(),
        ..peer("north", "three")
    };
    let all = vec![peer("south", "one"), below, unknown];
    *world.script.peers.lock().unwrap() = answer(all);
    let (exit, out, err) = world.says("peers").await;
    assert_eq!((exit, err.as_str()), (0, ""));
    let cells = |line: &str| {
        line.split("  ")
            .map(|cell| cell.trim().to_owned())
            .filter(|cell| !cell.is_empty())
            .collect::<Vec<_>>()
    };
    let lines: Vec<_> = out.lines().map(cells).collect();
    let times = ["2026-01-02T03:04:05Z", "2026-01-02T04:00:00Z"];
    let row = |side: &str, id: &str, authority: &str| {
        let id = format!("spiffe://a.b/{id}");
        [
            side,
            "grpc",
            &id,
            "192.0.2.7:4711",
            times[0],
            times[1],
            authority,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    assert_eq!(lines[0][0], "SIDE");
    assert_eq!(
        lines[1..],
        [
            row("north", "three", "not known"),
            row(
                "north",
                "two [2J",
                &format!("{OLD} > 1b, not in the bundle")
            ),
            row("south", "one", OLD),
        ]
    );
    let (_, out, _) = world.says("peers --json").await;
    let told: Vec<Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(told.len(), 3);
    assert_eq!(told[2]["spiffe_id"], "spiffe://a.b/one");
    assert_eq!(told[2]["authority_id"], OLD);
    assert_eq!(told[1]["intermediate_ids"][0], "1b");
    assert_eq!(told[1]["in_bundle"], false);
    assert_eq!(*world.script.noted.lock().unwrap(), ["peers ", "peers "]);
}

#[tokio::test]
async fn an_authority_is_taken_as_spire_and_openssl_write_it_and_as_nothing_else() {
    let world = World::new().await;
    *world.script.peers.lock().unwrap() = answer(Vec::new());
    let colons: String = OLD
        .to_uppercase()
        .as_bytes()
        .chunks(2)
        .map(|byte| String::from_utf8_lossy(byte).into_owned())
        .collect::<Vec<_>>()
        .join(":");
    for written in [OLD, &colons] {
        let (exit, out, err) = world.says(&format!("peers --authority {written}")).await;
        assert_eq!((exit, err.as_str()), (0, ""));
        assert_eq!(out, format!("no connection rests on authority {OLD}\n"));
    }
    assert_eq!(
        *world.script.noted.lock().unwrap(),
        [format!("peers {OLD}"), format!("peers {OLD}")]
    );
    let (exit, _, err) = world.says("peers --authority spiffe://a.b").await;
    assert_eq!(exit, 2);
    assert!(err.contains("an authority's id is hexadecimal"), "{err}");
}

#[tokio::test]
async fn an_authority_that_nobody_knows_and_an_answer_that_is_cut_short_are_remarked_upon() {
    let world = World::new().await;
    *world.script.peers.lock().unwrap() = answer(Vec::new());
    let (exit, out, err) = world.says("peers --authority abcd").await;
    assert_eq!(
        (exit, out.as_str()),
        (0, "no connection rests on authority abcd\n")
    );
    assert_eq!(
        err,
        format!("no bundle holds authority abcd; those of now are {OLD}, ff\n")
    );
    *world.script.peers.lock().unwrap() = pb::ListPeersResponse {
        omitted: 5,
        ..answer(vec![peer("north", "one")])
    };
    let (exit, out, err) = world.says("peers --json").await;
    assert_eq!((exit, out.lines().count()), (0, 1));
    assert!(err.starts_with("and 5 more"), "{err}");
    *world.script.peers.lock().unwrap() = answer(Vec::new());
    let (_, out, _) = world.says("peers").await;
    assert_eq!(out, "no connection has shown an identity\n");
}
