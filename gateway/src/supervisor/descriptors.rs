//! File descriptors: strangers at the door and callers must not take those that the journal, the
//! audit and the robots need.

use portarium_protocols::grpc::server::ServerLimits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the gateway itself needs: files, listeners, brokers, health checks.
const OWN: u64 = 128;

/// What a robot needs: two connections, and two more while these are renewed.
const OF_A_ROBOT: u64 = 4;

/// There is no gateway without callers.
const CALLERS_AT_LEAST: u64 = 64;

/// Takes as many descriptors as the system lets us have, and returns what callers may take of them.
/// The soft limit is low on most systems for the sake of programs that use `select`.
pub(super) fn for_callers(usual: ServerLimits, robots: usize) -> ServerLimits {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    let all = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "cannot raise the limit of open files");
            limit.current
        }
    };
    // `None`: without a limit.
    let Some(all) = all else { return usual };
    let wanted = usual.max_connections;
    let limits = share(usual, all, robots);
    if limits.max_connections < wanted {
        tracing::warn!(
            open_files = all,
            connections = limits.max_connections,
            "the limit of open files leaves room for fewer connections than usual; raise it (LimitNOFILE)"
        );
    }
    limits
}

fn share(usual: ServerLimits, all: u64, robots: usize) -> ServerLimits {
    let own = OWN + OF_A_ROBOT * robots as u64;
    let left = all.saturating_sub(own).max(CALLERS_AT_LEAST);
    let max_connections = usize::try_from(left).map_or(usual.max_connections, |left| {
        left.min(usual.max_connections)
    });
    ServerLimits {
        max_connections,
        // Fewer, or those who never get in would have all places.
        max_pending: usual.max_pending.min(max_connections / 2),
        ..usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(all: u64, robots: usize) -> (usize, usize) {
        let limits = share(ServerLimits::default(), all, robots);
        (limits.max_connections, limits.max_pending)
    }

    #[test]
    fn callers_get_what_robots_and_files_leave() {
        assert_eq!(places(524_288, 1_000), (4_096, 1_024));
        assert_eq!(places(1_024, 2), (888, 444));
        assert_eq!(places(1_024, 1_000), (64, 32));
    }
}
