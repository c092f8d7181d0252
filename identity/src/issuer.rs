//! Which authorities a certificate rests on, by the ids that SPIRE gives them.
//!
//! By names and key ids alone, of chains that were verified. A peer that sends certificates beside those
//! of its chain, made up to look like its issuers, is shown as it says; what it is let in by, and cut
//! by, is not told from this.

use crate::chain;
use rustls::pki_types::CertificateDer;
use std::sync::Arc;
use x509_parser::{certificate::X509Certificate, extensions::ParsedExtension};

/// The authorities of one bundle. One without a subject key id, which RFC 5280 forbids, has no name.
pub(crate) struct Authorities(Vec<Authority>);

struct Authority {
    subject: Vec<u8>,
    id: Arc<str>,
}

impl Authorities {
    pub(crate) fn of<'a>(bundle: impl Iterator<Item = &'a CertificateDer<'a>>) -> Self {
        let authority = |der| {
            let certificate = chain::parse(der).ok()?;
            Some(Authority {
                subject: certificate.subject().as_raw().to_vec(),
                id: key_id(&certificate)?.into(),
            })
        };
        Self(bundle.filter_map(authority).collect())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.iter().map(|authority| &authority.id)
    }

    /// What a chain that was verified with this bundle rests on: the authority of the bundle, then
    /// the intermediates that have an id, down to the one that signed the leaf. Nothing where it cannot
    /// be told.
    pub(crate) fn under(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Vec<Arc<str>> {
        self.path(leaf, intermediates).unwrap_or_default()
    }

    fn path(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Option<Vec<Arc<str>>> {
        let mut below = chain::parse(leaf).ok()?;
        let mut rest: Vec<_> = intermediates.iter().map(chain::parse).collect();
        let mut path = Vec::new();
        loop {
            if let Some(root) = self.signer_of(&below) {
                path.push(Arc::clone(root));
                path.reverse();
                return Some(path);
            }
            let signed = |signer: &X509Certificate<'_>| {
                signer.subject().as_raw() == below.issuer().as_raw()
                    && fits(&below, key_id(signer).as_deref())
            };
            let next = rest.iter().position(|c| c.as_ref().is_ok_and(signed))?;
            below = rest.swap_remove(next).ok()?;
            path.extend(key_id(&below).map(Arc::from));
        }
    }

    /// The one authority that can have signed it.
    fn signer_of(&self, certificate: &X509Certificate<'_>) -> Option<&Arc<str>> {
        let mut candidates = self.0.iter().filter(|authority| {
            authority.subject == certificate.issuer().as_raw()
                && fits(certificate, Some(&authority.id))
        });
        let first = &candidates.next()?.id;
        candidates.all(|other| other.id == *first).then_some(first)
    }
}

/// Whether the certificate names this key as that of its signer, or none.
fn fits(certificate: &X509Certificate<'_>, signer: Option<&str>) -> bool {
    let named =
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(key) => key.key_identifier.as_ref(),
                _ => None,
            });
    named.is_none_or(|named| signer == Some(chain::hex(named.0).as_str()))
}

/// The longest key id that is taken for one, in bytes: of SPIRE's, and by RFC 5280, they have 20.
const LONGEST_KEY_ID: usize = 64;

/// The subject key id, lower-case hex.
fn key_id(certificate: &X509Certificate<'_>) -> Option<String> {
    certificate
        .extensions()
        .iter()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(key) if key.0.len() <= LONGEST_KEY_ID => {
                Some(chain::hex(key.0))
            }
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair};

    /// A CA or a leaf, and what it signs with.
    struct Made {
        der: CertificateDer<'static>,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Made {
        /// Where `id` is empty it has no key id, and names none of its signer.
        fn new(name: &str, id: &[u8], signer: Option<&Self>) -> Self {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            if id.is_empty() {
                params.is_ca = IsCa::NoCa;
            }
            params.key_identifier_method = KeyIdMethod::PreSpecified(id.to_vec());
            params.use_authority_key_identifier_extension = !id.is_empty();
            let key = KeyPair::generate().unwrap();
            let der = match signer {
                Some(signer) => params.signed_by(&key, &signer.issuer),
                None => params.self_signed(&key),
            };
            Self {
                der: der.unwrap().der().clone(),
                issuer: Issuer::new(params, key),
            }
        }
    }

    fn under(bundle: &[&Made], leaf: &Made, sent: &[&Made]) -> String {
        let authorities = Authorities::of(bundle.iter().map(|made| &made.der));
        let sent: Vec<_> = sent.iter().map(|made| made.der.clone()).collect();
        authorities.under(&leaf.der, &sent).join(" ")
    }

    #[test]
    fn a_leaf_rests_on_the_one_of_several_authorities_that_signed_it() {
        let (a, b) = (Made::new("A", &[0, 1], None), Made::new("B", &[2], None));
        let leaf = |signer| Made::new("leaf", &[9], Some(signer));
        assert_eq!(under(&[&a, &b], &leaf(&a), &[]), "0001");
        assert_eq!(under(&[&a, &b], &leaf(&b), &[]), "02");
        assert_eq!(under(&[&b], &leaf(&a), &[]), "");
        // An authority that kept its name is told by its key.
        let again = Made::new("A", &[3], None);
        assert_eq!(under(&[&a, &again], &leaf(&again), &[]), "03");
        let all: Vec<_> = Authorities::of([&a.der, &b.der].into_iter())
            .ids()
            .map(ToString::to_string)
            .collect();
        assert_eq!(all, ["0001", "02"]);
    }

    #[test]
    fn intermediates_are_named_behind_the_root_and_only_those_in_the_path() {
        let root = Made::new("root", &[1], None);
        let upper = Made::new("upper", &[2], Some(&root));
        let lower = Made::new("lower", &[3], Some(&upper));
        let beside = Made::new("beside", &[4], Some(&root));
        let leaf = Made::new("leaf", &[9], Some(&lower));
        // In whatever order they were sent.
        for sent in [[&lower, &upper, &beside], [&beside, &upper, &lower]] {
            assert_eq!(under(&[&root], &leaf, &sent), "01 02 03");
        }
        assert_eq!(under(&[&root], &leaf, &[&lower]), "");
        let nameless = Made::new("nameless", &[7; 65], Some(&root));
        let leaf_of_it = Made::new("leaf", &[9], Some(&nameless));
        assert_eq!(under(&[&root], &leaf_of_it, &[&nameless]), "");
        // The shortest way, as the verifier goes.
        assert_eq!(under(&[&root, &upper], &leaf, &[&lower, &upper]), "02 03");
    }

    #[test]
    fn what_cannot_be_told_is_not_guessed() {
        let (a, b) = (Made::new("A", &[1], None), Made::new("A", &[2], None));
        let silent = Made::new("leaf", &[], Some(&a));
        assert_eq!(under(&[&a], &silent, &[]), "01");
        assert_eq!(under(&[&a, &b], &silent, &[]), "");
        // Two that sign each other, beneath no authority of the bundle.
        let x = Made::new("x", &[5], None);
        let y = Made::new("y", &[6], Some(&x));
        let leaf = Made::new("leaf", &[9], Some(&y));
        assert_eq!(under(&[&a], &leaf, &[&y, &x]), "");
    }
}
