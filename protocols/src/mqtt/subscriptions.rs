//! What the command connection listens to.

use super::{connection::Connection, topic};
use crate::ids::TenantId;
use rumqttc::v5::mqttbytes::v5::RetainForwardRule;
use std::collections::BTreeSet;
use tokio::sync::oneshot;

/// Tenants in one SUBSCRIBE: three filters each, well below any broker's packet limit.
const TENANTS_AT_ONCE: usize = 16;

/// Asks for what is heard of the tenants; the answers come when the broker has confirmed it.
/// `retained`: whether what the broker has kept comes too.
pub(crate) fn subscribe(
    connection: &mut Connection,
    tenants: &BTreeSet<TenantId>,
    shared_status: bool,
    retained: &RetainForwardRule,
) -> Vec<oneshot::Receiver<()>> {
    let tenants: Vec<_> = tenants.iter().collect();
    tenants
        .chunks(TENANTS_AT_ONCE)
        .map(|some| {
            let filters = some
                .iter()
                .flat_map(|t| topic::filters(t, shared_status))
                .collect();
            connection.subscribe(filters, retained.clone())
        })
        .collect()
}

/// Makes the subscriptions follow a changed list of robots.
pub(crate) fn follow(
    connection: &mut Connection,
    have: &BTreeSet<TenantId>,
    want: &BTreeSet<TenantId>,
    shared_status: bool,
) {
    let added: BTreeSet<_> = want.difference(have).cloned().collect();
    // Their answers are dealt with when they come; nothing here waits for them.
    let retained = RetainForwardRule::OnNewSubscribe;
    drop(subscribe(connection, &added, shared_status, &retained));
    for tenant in have.difference(want) {
        connection.unsubscribe(topic::filters(tenant, shared_status));
    }
}

/// Waits for all answers.
pub(crate) async fn all(answers: Vec<oneshot::Receiver<()>>) {
    for answer in answers {
        // The other end is in the connection, whose loss ends this wait.
        let _ = answer.await;
    }
}
