//! What the authority has issued and when it issues anew.
use super::{
    AuthorityError, Entry,
    ca::{Ca, MintSpec, Minted},
    jwt::JwtKey,
    proto::{X509svid, X509svidResponse},
};
use crate::{SpiffeId, TrustDomain};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{sync::watch, time::sleep};

/// The part of a CA's life after which the next one is made and joins the bundle, ...
const PREPARE: f64 = 0.5;
/// ... and after which it signs, when every peer has it.
const ACTIVATE: f64 = 5.0 / 6.0;

/// What is handed out now.
pub(super) struct Issued {
    pub(super) x509: X509svidResponse,
    /// The X.509 authorities, DER, concatenated.
    pub(super) bundle: Vec<u8>,
    pub(super) entries: Vec<(SpiffeId, Entry)>,
}

/// Signs, and tells all followers.
pub(super) struct Mint {
    pub(super) trust_domain: TrustDomain,
    pub(super) jwt: JwtKey,
    svid_ttl: Duration,
    ca_ttl: Duration,
    state: Mutex<State>,
    issued: watch::Sender<Arc<Issued>>,
}

struct State {
    active: Ca,
    next: Option<Ca>,
    /// Certificates of CAs that sign no longer, while SVIDs of theirs may be alive.
    retired: Vec<(Vec<u8>, SystemTime)>,
    entries: Vec<(SpiffeId, Entry)>,
}

impl Mint {
    pub(super) fn new(
        trust_domain: TrustDomain,
        svid_ttl: Duration,
        ca_ttl: Duration,
        entries: Vec<(SpiffeId, Entry)>,
    ) -> Result<Self, AuthorityError> {
        let mut state = State {
            active: Ca::new(trust_domain.as_str(), ca_ttl, SystemTime::now())?,
            next: None,
            retired: Vec::new(),
            entries,
        };
        let issued = state.issue(svid_ttl)?;
        Ok(Self {
            trust_domain,
            jwt: JwtKey::new()?,
            svid_ttl,
            ca_ttl,
            state: Mutex::new(state),
            issued: watch::Sender::new(Arc::new(issued)),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is handed out, and each change of it.
    pub(super) fn issued(&self) -> watch::Receiver<Arc<Issued>> {
        self.issued.subscribe()
    }

    /// Issues all SVIDs anew.
    pub(super) fn rotate(&self) -> Result<(), AuthorityError> {
        let mut state = self.state();
        state.look_after_cas(self.trust_domain.as_str(), self.ca_ttl, SystemTime::now())?;
        self.publish(&mut state)
    }

    pub(super) fn set_entries(
        &self,
        entries: Vec<(SpiffeId, Entry)>,
    ) -> Result<(), AuthorityError> {
        let mut state = self.state();
        state.entries = entries;
        self.publish(&mut state)
    }

    pub(super) fn prepare(&self) -> Result<(), AuthorityError> {
        let mut state = self.state();
        state.prepare(self.trust_domain.as_str(), self.ca_ttl, SystemTime::now())?;
        self.publish_bundle(&state);
        Ok(())
    }

    /// As SPIRE does, which tells nobody: the bundle has it already.
    pub(super) fn activate(&self) {
        self.state().activate();
    }

    pub(super) fn revoke(&self) {
        let mut state = self.state();
        state.retired.clear();
        self.publish_bundle(&state);
    }

    /// The SVIDs of before with the bundle of now.
    fn publish_bundle(&self, state: &State) {
        let bundle: Vec<u8> = state.bundle().flatten().copied().collect();
        self.issued.send_modify(|issued| {
            let mut x509 = issued.x509.clone();
            for svid in &mut x509.svids {
                svid.bundle.clone_from(&bundle);
            }
            *issued = Arc::new(Issued {
                x509,
                bundle,
                entries: issued.entries.clone(),
            });
        });
    }

    fn publish(&self, state: &mut State) -> Result<(), AuthorityError> {
        self.issued
            .send_replace(Arc::new(state.issue(self.svid_ttl)?));
        Ok(())
    }

    pub(super) fn mint(&self, spec: &MintSpec) -> Result<Minted, AuthorityError> {
        self.state().active.mint(spec)
    }

    pub(super) fn bundle(&self) -> Vec<Vec<u8>> {
        self.state().bundle().map(<[u8]>::to_vec).collect()
    }

    /// Renews at half of the SVIDs' life ± 10 %, counted anew after each change.
    pub(super) async fn keep_renewing(&self) {
        let mut issued = self.issued();
        loop {
            let half = self.svid_ttl.mul_f64(0.45 + fastrand::f64() / 10.0);
            tokio::select! {
                // The sender lives in `self`.
                _ = issued.changed() => {}
                () = sleep(half) => {
                    if let Err(error) = self.rotate() {
                        tracing::error!("cannot renew the SVIDs: {error}");
                    }
                }
            }
        }
    }
}

impl State {
    fn issue(&mut self, ttl: Duration) -> Result<Issued, AuthorityError> {
        let bundle: Vec<u8> = self.bundle().flatten().copied().collect();
        let svids = self
            .entries
            .iter()
            .map(|(id, entry)| self.svid(id, entry, ttl, &bundle))
            .collect::<Result<_, _>>()?;
        Ok(Issued {
            x509: X509svidResponse {
                svids,
                ..X509svidResponse::default()
            },
            bundle,
            entries: self.entries.clone(),
        })
    }

    fn svid(
        &self,
        id: &SpiffeId,
        entry: &Entry,
        ttl: Duration,
        bundle: &[u8],
    ) -> Result<X509svid, AuthorityError> {
        let minted = self.active.mint(&MintSpec {
            dns_names: entry.dns_names.clone(),
            ..MintSpec::svid(id.to_string(), ttl)
        })?;
        Ok(X509svid {
            spiffe_id: id.to_string(),
            x509_svid: minted.chain_der.concat(),
            x509_svid_key: minted.key_pkcs8_der.to_vec(),
            bundle: bundle.to_vec(),
            hint: entry.hint.clone(),
        })
    }

    fn bundle(&self) -> impl Iterator<Item = &[u8]> {
        [&self.active]
            .into_iter()
            .chain(&self.next)
            .map(|ca| ca.certificate.as_slice())
            .chain(
                self.retired
                    .iter()
                    .map(|(certificate, _)| certificate.as_slice()),
            )
    }

    fn look_after_cas(
        &mut self,
        trust_domain: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(), AuthorityError> {
        self.retired.retain(|(_, end)| *end > now);
        let age = self.active.age(now);
        if age >= PREPARE && self.next.is_none() {
            self.prepare(trust_domain, ttl, now)?;
        } else if age >= ACTIVATE {
            self.activate();
        }
        Ok(())
    }

    fn prepare(
        &mut self,
        trust_domain: &str,
        ttl: Duration,
        now: SystemTime,
    ) -> Result<(), AuthorityError> {
        self.next = Some(Ca::new(trust_domain, ttl, now)?);
        Ok(())
    }

    fn activate(&mut self) {
        if let Some(next) = self.next.take() {
            let old = std::mem::replace(&mut self.active, next);
            self.retired.push((old.certificate, old.not_after));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_next_ca_joins_the_bundle_long_before_it_signs_and_the_old_one_stays_until_its_end() {
        let ttl = Duration::from_secs(1_200);
        let start = SystemTime::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut state = State {
            active: Ca::new("a.b", ttl, start).unwrap(),
            next: None,
            retired: Vec::new(),
            entries: Vec::new(),
        };
        let first = state.active.certificate.clone();
        let mut look = |secs| {
            state.look_after_cas("a.b", ttl, at(secs)).unwrap();
            (state.bundle().count(), state.active.certificate == first)
        };
        assert_eq!(look(599), (1, true));
        assert_eq!(look(601), (2, true));
        assert_eq!(look(999), (2, true));
        assert_eq!(look(1_001), (2, false));
        assert_eq!(look(1_150), (2, false));
        assert_eq!(look(1_201), (2, false));
    }
}
