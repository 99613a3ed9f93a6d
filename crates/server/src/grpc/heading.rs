//! What the service reads of a gRPC message: whom it is about, and nothing else.
//!
//! Requests of the Open Inference Protocol begin with the name of a model, its version and the id of the request (fields 1 to 3), and
//! every client writes fields in their order. So only the start of a message is looked at, of bounded length; the first field beyond
//! ends the reading before its value. What follows, tensors above all, is parsed in the tenant's cell, which refuses a message that has
//! these fields a second time or further behind: nobody is asked for one model and gives another.

use platform::wire::protobuf::{Fields, Value};

use crate::error::{Fail, Result};

/// How much of a message is looked at, in bytes: more than the three fields may take.
pub(crate) const BYTES_MAX: usize = 2048;
/// Longest name, version and id in bytes.
const FIELD_BYTES_MAX: [usize; 3] = [256, 64, 1024];
const FIELDS: [&str; 3] = ["the name of the model", "the version", "the id"];

/// The first fields of a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Heading {
    /// Name of the model; may be empty.
    pub(crate) name: String,
    /// Its version, when one is demanded.
    pub(crate) version: Option<String>,
    /// What the client calls the request.
    pub(crate) id: Option<String>,
}

impl Heading {
    /// Of a message, or of its first [`BYTES_MAX`] bytes.
    pub(crate) fn read(start: &[u8]) -> Result<Self> {
        let malformed = |error: platform::wire::protobuf::Malformed| Fail::new("invalid", error.to_string());
        let mut fields = Fields::new(start.get(..BYTES_MAX).unwrap_or(start));
        let (mut found, mut last) = ([const { None }; 3], 0);
        while let Some(key) = fields.key().map_err(malformed)? {
            let place = usize::try_from(key.number).unwrap_or(usize::MAX) - 1;
            let (Some(slot), Some(bytes_max), Some(what)) = (found.get_mut(place), FIELD_BYTES_MAX.get(place), FIELDS.get(place)) else {
                break;
            };
            if key.number <= last {
                return Err(Fail::new("invalid", format!("{what} is there twice, or behind what follows it")));
            }
            last = key.number;
            let Value::Bytes(bytes) = fields.value(key).map_err(malformed)? else {
                return Err(Fail::new("invalid", format!("{what} is no text")));
            };
            if bytes.len() > *bytes_max {
                return Err(Fail::new("invalid", format!("{what} is longer than {bytes_max} bytes")));
            }
            let text = std::str::from_utf8(bytes).ok().filter(|text| !text.chars().any(char::is_control));
            *slot = Some(text.ok_or_else(|| Fail::new("invalid", format!("{what} is not clean UTF-8")))?.to_owned());
        }
        let [name, version, id] = found;
        Ok(Self { name: name.unwrap_or_default(), version: version.filter(|version| !version.is_empty()), id })
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use platform::wire::protobuf::Writer;

    use super::*;

    fn message(texts: &[(u32, &str)]) -> Vec<u8> {
        let mut writer = Writer::default();
        texts.iter().for_each(|(number, text)| writer.item(*number, text.as_bytes()));
        writer.into_bytes()
    }

    #[test]
    fn the_first_fields_are_read_and_the_rest_is_not() {
        let mut bytes = message(&[(1, "gate"), (2, "3"), (3, "r-7")]);
        // A tensor whose bytes are not there yet, and then nothing that is a message.
        bytes.extend([0x3a, 0xff, 0xff, 0x03, 0xff, 0xff]);
        let heading = Heading::read(&bytes).unwrap();
        assert_eq!((heading.name.as_str(), heading.version.as_deref(), heading.id.as_deref()), ("gate", Some("3"), Some("r-7")));
        assert_eq!(Heading::read(&[]).unwrap(), Heading::default());
        let no_version = Heading::read(&message(&[(1, "gate"), (2, "")])).unwrap();
        assert_eq!(no_version.version, None, "an empty version is none");
        let behind = Heading::read(&message(&[(5, "input"), (1, "gate")])).unwrap();
        assert_eq!(behind.name, "", "what stands behind is not looked for");
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let long = |bytes| "x".repeat(bytes);
        for (texts, why) in [
            (vec![(1, "a".to_owned()), (1, "b".to_owned())], "twice"),
            (vec![(2, "1".to_owned()), (1, "a".to_owned())], "behind"),
            (vec![(1, long(257))], "longer than 256"),
            (vec![(1, "a".to_owned()), (2, long(65))], "longer than 64"),
            (vec![(1, "a".to_owned()), (3, long(1025))], "longer than 1024"),
            (vec![(1, "a\nb".to_owned())], "not clean"),
            (vec![(1, long(5000))], "past the end"),
        ] {
            let texts: Vec<(u32, &str)> = texts.iter().map(|(number, text)| (*number, text.as_str())).collect();
            let fail = Heading::read(&message(&texts)).unwrap_err();
            assert!(format!("{fail:?}").contains(why), "{why}: {fail:?}");
        }
        for bytes in [&[0x08, 1][..], &[0x0a, 2, b'a'], &[0x0a, 1, 0xff], &[0x0b], &[0x80], &[0x00]] {
            assert_eq!(Heading::read(bytes).unwrap_err().code(), "invalid", "{bytes:?}");
        }
    }

    mod hostile {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            #[test]
            fn bytes_never_panic_and_never_give_more_than_they_have(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
                if let Ok(heading) = Heading::read(&bytes) {
                    prop_assert!(heading.name.len() <= bytes.len() && heading.name.len() <= 256);
                }
            }

            #[test]
            fn damaged_messages_never_panic(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>(), name in "[a-z]{1,40}") {
                let mut bytes = message(&[(1, &name), (2, "12"), (3, "id"), (5, "tensor"), (7, "bytes")]);
                let at = at.index(bytes.len());
                bytes[at] = to;
                bytes.truncate(cut.index(bytes.len()) + 1);
                let _ = Heading::read(&bytes);
            }

            #[test]
            fn whatever_follows_changes_nothing(name in "\\PC{0,60}", version in "[0-9]{0,9}", rest in proptest::collection::vec(any::<u8>(), 0..3000)) {
                let mut bytes = message(&[(1, &name), (2, &version)]);
                bytes.extend([0x2a, 0xff, 0xff, 0xff, 0x0f]);
                bytes.extend(rest);
                let heading = Heading::read(&bytes).unwrap();
                prop_assert_eq!(heading.name, name);
                prop_assert_eq!(heading.version.unwrap_or_default(), version);
            }
        }
    }
}
