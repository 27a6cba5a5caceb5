//! Until when the certificate of a kubeconfig's user is good. A cluster that refuses an expired one only says that it
//! does not know who asks; k3s makes its for a year.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use der::asn1::{GeneralizedTime, UtcTime};
use der::{Decode as _, Header, Reader as _, SliceReader, Tag};
use jiff::Timestamp;

/// The end of a certificate's time, from PEM.
pub(super) fn of_pem(pem: &str) -> Option<Timestamp> {
    let body = pem.split_once("-----BEGIN CERTIFICATE-----")?.1.split_once("-----END")?.0;
    let body: String = body.split_whitespace().collect();
    of_der(&BASE64.decode(body).ok()?)
}

/// RFC 5280: Certificate is a SEQUENCE whose first part is a SEQUENCE of [0] version, serial number, algorithm, issuer
/// and validity, a SEQUENCE of two times.
fn of_der(certificate: &[u8]) -> Option<Timestamp> {
    let inside = |bytes| contents(bytes, 0);
    let signed = inside(inside(certificate)?)?;
    // Certificates of the first version do not say so.
    let has_version = SliceReader::new(signed).ok()?.peek_byte()? == 0xa0;
    let validity = contents(signed, if has_version { 4 } else { 3 })?;
    let (tag, end) = element(validity, 1)?;
    let seconds = match tag {
        Tag::UtcTime => UtcTime::from_der(end).ok()?.to_unix_duration(),
        _ => GeneralizedTime::from_der(end).ok()?.to_unix_duration(),
    };
    Timestamp::new(i64::try_from(seconds.as_secs()).ok()?, 0).ok()
}

/// What is inside of the element of that number.
fn contents(bytes: &[u8], number: usize) -> Option<&[u8]> {
    let (_, whole) = element(bytes, number)?;
    let mut reader = SliceReader::new(whole).ok()?;
    Header::decode(&mut reader).ok()?;
    let left = usize::try_from(u32::from(reader.remaining_len())).ok()?;
    whole.get(whole.len() - left..)
}

/// The element of that number with its header, and its tag.
fn element(bytes: &[u8], number: usize) -> Option<(Tag, &[u8])> {
    let mut reader = SliceReader::new(bytes).ok()?;
    for _ in 0..number {
        reader.tlv_bytes().ok()?;
    }
    let whole = reader.tlv_bytes().ok()?;
    Some((Header::decode(&mut SliceReader::new(whole).ok()?).ok()?.tag(), whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by openssl: one whose end is a UTCTime, and one that ends after 2050, in a GeneralizedTime.
    const PEMS: [(&str, &str); 2] = [
        (
            "-----BEGIN CERTIFICATE-----\n\
         MIIBADCBpgIBATAKBggqhkjOPQQDAjAMMQowCAYDVQQDDAFhMB4XDTIwMDEwMjAz\n\
         MDQwNVoXDTIxMDEwMjAzMDQwNVowDDEKMAgGA1UEAwwBYTBZMBMGByqGSM49AgEG\n\
         CCqGSM49AwEHA0IABCaOTKLtYyaNXD9Uz+Sp17IZviQ446Q/u5atU5dwvmBnXw2o\n\
         u/IhGltZJ+UbazLdY3V1M0P074hqMdOyOoPYNXQwCgYIKoZIzj0EAwIDSQAwRgIh\n\
         AO9Ew+xVlHz9rxdzgwWjm0jBTzbOcnDYW/tY5QrqGCdNAiEA1WoiNOF93wu3roBl\n\
         /bxnscoFJVXwb+Sg3trWaaf5vpc=\n\
         -----END CERTIFICATE-----",
            "2021-01-02T03:04:05Z",
        ),
        (
            "-----BEGIN CERTIFICATE-----\n\
         MIIBcDCCARWgAwIBAgIUE0Xrz+BxN7LNfVSjhxT7/O0YUOswCgYIKoZIzj0EAwIw\n\
         DDEKMAgGA1UEAwwBYjAgFw0yNjExMjcyMjMwMjlaGA8yMDYxMDUyNzIyMzAyOVow\n\
         DDEKMAgGA1UEAwwBYjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCaOTKLtYyaN\n\
         XD9Uz+Sp17IZviQ446Q/u5atU5dwvmBnXw2ou/IhGltZJ+UbazLdY3V1M0P074hq\n\
         MdOyOoPYNXSjUzBRMB0GA1UdDgQWBBSMORujL90lgSU4rfIySykKbF7eljAfBgNV\n\
         HSMEGDAWgBSMORujL90lgSU4rfIySykKbF7eljAPBgNVHRMBAf8EBTADAQH/MAoG\n\
         CCqGSM49BAMCA0kAMEYCIQDu406adlA7/9gsFIWCEtx+fbvzvSgBAuCV3qoZKEHm\n\
         MgIhAJrLMdovRsBLQVvXsNC16Cx8LEZMkMuk3k0Ui4yTgQXq\n\
         -----END CERTIFICATE-----",
            "2061-05-27T22:30:29Z",
        ),
    ];

    #[test]
    fn the_end_of_a_certificate_is_read() {
        for (pem, end) in PEMS {
            assert_eq!(of_pem(pem), Some(end.parse().unwrap()));
        }
    }

    #[test]
    fn rubbish_has_no_end() {
        for pem in [
            "",
            "-----BEGIN CERTIFICATE-----",
            "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----",
        ] {
            assert_eq!(of_pem(pem), None);
        }
        for length in 0..64 {
            assert_eq!(of_der(&vec![0x30; length]), None);
            assert_eq!(of_der(&[&[0x30, 0x80][..], &vec![0xff; length]].concat()), None);
        }
    }
}
