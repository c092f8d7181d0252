//! Who is on the other end, and until when.
use crate::{SpiffeId, token::Thumbprint};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::Instant;

/// How long before NotAfter a connection ends at the latest.
const MARGIN: Duration = Duration::from_secs(1);
/// The margin's greatest part of the time left, so that very short SVIDs still give leases.
const MARGIN_PART: f64 = 0.05;
/// The part of a lease after which its successor is made: from here, jittered, ...
const RENEW_FROM: f64 = 0.5;
/// ... to here.
const RENEW_TO: f64 = 0.8;

/// The authenticated other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub spiffe_id: SpiffeId,
    /// The certificate's serial number, lower-case hex.
    pub serial: String,
    /// The certificate's thumbprint: what access tokens are bound to.
    pub thumbprint: Thumbprint,
    /// The certificate's end, or that of an intermediate sent with it if that is earlier.
    pub not_after: SystemTime,
    /// The authorities that the certificate rests on, by their subject key ids in lower-case hex, as
    /// `spire-server localauthority x509 show` names them: that of the trust domain's bundle, then
    /// the intermediates down to the one that signed it. None where they cannot be told.
    pub authorities: Vec<Arc<str>>,
    /// The SVID generation that we presented.
    pub own_generation: u64,
    /// The end of the SVID that we presented.
    pub own_not_after: SystemTime,
    /// The same on the clock that is not stepped, as seen when the SVID arrived: a wall clock that
    /// was stepped back since does not make it last longer.
    pub own_deadline: Instant,
}

impl Peer {
    /// When this connection must be over: a margin of at most one second before min(own, peer)
    /// NotAfter, on a clock that is not stepped.
    pub fn lease(&self, now: SystemTime) -> Lease {
        let end = self.not_after.min(self.own_not_after);
        let left = end.duration_since(now).unwrap_or(Duration::ZERO);
        let left = left.min(self.own_deadline.saturating_duration_since(Instant::now()));
        let length = left.saturating_sub(MARGIN.min(left.mul_f64(MARGIN_PART)));
        Lease::new(length, Instant::now(), fastrand::f64())
    }
}

/// The time that a connection may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Close it before this.
    pub ends: Instant,
    /// Make the next one from here on (jittered: after 50 to 80 % of the lease).
    pub renew: Instant,
}

impl Lease {
    /// A lease of the given length, for connections without certificates (`development`).
    pub fn of(length: Duration) -> Self {
        Self::new(length, Instant::now(), fastrand::f64())
    }

    /// `jitter` is in 0..1.
    fn new(length: Duration, from: Instant, jitter: f64) -> Self {
        let part = RENEW_FROM + (RENEW_TO - RENEW_FROM) * jitter;
        Self {
            ends: from + length,
            renew: from + length.mul_f64(part),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn peer(own: u64, peer: u64) -> Peer {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        Peer {
            spiffe_id: SpiffeId::new("spiffe://a.b/c").unwrap(),
            serial: "01".into(),
            thumbprint: Thumbprint::of(&[].as_slice().into()),
            not_after: at(peer),
            authorities: Vec::new(),
            own_generation: 1,
            own_not_after: at(own),
            own_deadline: Instant::now() + Duration::from_secs(10_000),
        }
    }

    fn at(secs: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(secs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_ends_one_second_before_the_earlier_of_both_ends() {
        for (own, other) in [(1_000, 5_000), (5_000, 1_000)] {
            let lease = peer(own, other).lease(at(400));
            assert_eq!(lease.ends - Instant::now(), Duration::from_secs(599));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_margin_of_a_short_svid_is_a_twentieth_of_what_is_left() {
        let lease = peer(410, 410).lease(at(400));
        assert_eq!(lease.ends - Instant::now(), Duration::from_millis(9_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_of_what_has_ended_is_over_at_once() {
        let lease = peer(400, 1_000).lease(at(400));
        assert_eq!((lease.ends, lease.renew), (Instant::now(), Instant::now()));
        let lease = peer(300, 1_000).lease(at(400));
        assert_eq!(lease.ends, Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_stepped_back_makes_no_lease_longer_than_our_own_svid() {
        let peer = Peer {
            own_deadline: Instant::now() + Duration::from_secs(100),
            ..peer(1_000, 1_000)
        };
        let lease = peer.lease(at(0));
        assert_eq!(lease.ends - Instant::now(), Duration::from_secs(99));
    }

    #[tokio::test(start_paused = true)]
    async fn renewal_is_spread_over_50_to_80_percent_of_the_lease() {
        let from = Instant::now();
        let length = Duration::from_secs(1_000);
        let earliest = Lease::new(length, from, 0.0);
        let latest = Lease::new(length, from, 1.0);
        assert_eq!(earliest.renew - from, Duration::from_secs(500));
        assert_eq!(latest.renew - from, Duration::from_secs(800));
        let some: Vec<_> = (0..50).map(|_| Lease::of(length).renew).collect();
        assert!(
            some.iter()
                .all(|r| (earliest.renew..=latest.renew).contains(r))
        );
        assert!(some.iter().any(|r| *r != some[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_goes_by_the_clock_that_is_not_stepped() {
        let lease = peer(1_000, 1_000).lease(at(900));
        tokio::time::advance(Duration::from_secs(98)).await;
        assert!(lease.ends > Instant::now());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(lease.ends < Instant::now());
    }
}
