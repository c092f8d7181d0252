//! X.509 extensions in the order and encoding that Go, and so SPIRE, writes them; rcgen has its own
//! order.
use super::AuthorityError;
use rcgen::CustomExtension;

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const SUBJECT_KEY: &[u64] = &[2, 5, 29, 14];
const AUTHORITY_KEY: &[u64] = &[2, 5, 29, 35];
const SUBJECT_ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];

/// keyCertSign, cRLSign.
const SIGNS_CERTIFICATES: &[u8] = &[0x03, 0x02, 0x01, 0x06];
/// digitalSignature, keyEncipherment, keyAgreement.
const SIGNS: &[u8] = &[0x03, 0x02, 0x03, 0xa8];
/// serverAuth, clientAuth.
const BOTH_SIDES: &[u8] = &[
    0x30, 0x14, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01, 0x06, 0x08, 0x2b, 0x06,
    0x01, 0x05, 0x05, 0x07, 0x03, 0x02,
];
const IS_CA: &[u8] = &[0x30, 0x03, 0x01, 0x01, 0xff];
const IS_NO_CA: &[u8] = &[0x30, 0x00];

const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const KEY_IDENTIFIER: u8 = 0x80;
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;

/// Whom a certificate is about.
pub(super) struct About<'a> {
    pub(super) is_ca: bool,
    pub(super) key: &'a [u8],
    /// The key of who signs; `None`: its own.
    pub(super) signer: Option<&'a [u8]>,
    pub(super) dns_names: &'a [String],
    pub(super) uris: &'a [String],
}

/// All of a certificate's extensions.
pub(super) fn extensions(about: &About<'_>) -> Result<Vec<CustomExtension>, AuthorityError> {
    let mut all = Vec::new();
    if about.is_ca {
        all.push(critical(KEY_USAGE, SIGNS_CERTIFICATES.to_vec()));
        all.push(critical(BASIC_CONSTRAINTS, IS_CA.to_vec()));
    } else {
        all.push(critical(KEY_USAGE, SIGNS.to_vec()));
        all.push(plain(EXTENDED_KEY_USAGE, BOTH_SIDES.to_vec()));
        all.push(critical(BASIC_CONSTRAINTS, IS_NO_CA.to_vec()));
    }
    all.push(plain(SUBJECT_KEY, der(OCTET_STRING, about.key)));
    if let Some(signer) = about.signer {
        let signer = der(SEQUENCE, &der(KEY_IDENTIFIER, signer));
        all.push(plain(AUTHORITY_KEY, signer));
    }
    let names = names(about)?;
    if !names.is_empty() {
        all.push(plain(SUBJECT_ALTERNATIVE_NAME, der(SEQUENCE, &names)));
    }
    Ok(all)
}

fn names(about: &About<'_>) -> Result<Vec<u8>, AuthorityError> {
    let dns_names = about.dns_names.iter().map(|name| (DNS_NAME, name));
    let uris = about.uris.iter().map(|uri| (URI, uri));
    let mut names = Vec::new();
    for (tag, name) in dns_names.chain(uris) {
        if !name.is_ascii() {
            let problem = format!("{name:?} cannot be a name in a certificate: it is not ASCII");
            return Err(AuthorityError::Config(problem));
        }
        names.extend(der(tag, name.as_bytes()));
    }
    Ok(names)
}

fn plain(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    CustomExtension::from_oid_content(oid, content)
}

fn critical(oid: &[u64], content: Vec<u8>) -> CustomExtension {
    let mut extension = plain(oid, content);
    extension.set_criticality(true);
    extension
}

/// A DER element.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut element = vec![tag];
    match (length, u8::try_from(length.len())) {
        ([], _) => element.push(0),
        ([short], _) if *short < 0x80 => element.push(*short),
        (_, bytes) => {
            // A usize has eight bytes at most.
            element.push(0x80 | bytes.unwrap_or(8));
            element.extend(length);
        }
    }
    element.extend(content);
    element
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_in_as_few_bytes_as_there_are() {
        for (length, head) in [
            (0, vec![4, 0]),
            (127, vec![4, 127]),
            (128, vec![4, 0x81, 128]),
            (255, vec![4, 0x81, 255]),
            (256, vec![4, 0x82, 1, 0]),
            (70_000, vec![4, 0x83, 1, 0x11, 0x70]),
        ] {
            let element = der(OCTET_STRING, &vec![7; length]);
            assert_eq!(element[..head.len()], head);
            assert_eq!(element.len(), head.len() + length);
        }
    }
}
