//! Receipts: what they say, what they prove, and that no byte of one can be changed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn predicted(number: u64) -> Entry {
    let digest =
        |of: &str| crate::name::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{of} {number}").as_bytes()).as_ref());
    let detail = [
        ("input_sha256", digest("input")),
        ("model_sha256", digest("model")),
        ("model_version", "3".to_owned()),
        ("isolation", "gvisor".to_owned()),
        ("output_sha256", digest("output")),
        ("policy", "0123456789abcdef".to_owned()),
    ];
    Entry {
        time: 1_795_000_000_123_456 + number as i64,
        act: "Predict".into(),
        resource: "deployment:iris".into(),
        outcome: Outcome::Allowed,
        detail: detail.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        generation: None,
        ..entry(number)
    }
}

/// A log with receipts in between: the last receipt as it was given, and the log.
fn told(dir: &Path) -> (Ledger, String, u64) {
    let ledger = filled(dir, 20);
    for number in 20..40 {
        ledger.append_receipted(&predicted(number)).unwrap();
    }
    let receipt = ledger.append_receipted(&predicted(40)).unwrap();
    (ledger, receipt, 40)
}

#[test]
fn a_receipt_is_the_same_word_early_and_late_in_every_form() {
    let dir = TempDir::new().unwrap();
    let (ledger, early, index) = told(dir.path());
    let vkey = ledger.vkey();
    for number in 41..300 {
        ledger.append(&entry(number)).unwrap();
    }
    let late = ledger.receipt(index).unwrap();
    assert_eq!(late.receipt, early, "the signature is deterministic: asking later gives the same bytes");
    let mut export = Vec::new();
    ledger.export(&mut export).unwrap();
    let json = serde_json::to_string(&late).unwrap();
    let forms = [early.clone(), STANDARD.encode(&early), format!("{}\n", STANDARD.encode(&early)), json.clone(), format!("{json}\n")];
    for form in forms {
        let report = verify_receipt(form.as_bytes(), &vkey, None).unwrap();
        let said = &report.statement;
        assert_eq!((said.log.as_str(), said.entry, said.deployment.as_str(), said.version.as_str()), (ORIGIN, index, "iris", "3"));
        assert_eq!(said.time, "2026-11-18T11:06:40.123496Z");
        assert_eq!((&said.output, said.isolation.as_deref()), (&predicted(index).detail["output_sha256"], Some("gvisor")));
        assert_eq!(report.proven_size, form.starts_with('{').then_some(300));
        let report = verify_receipt(form.as_bytes(), &vkey, Some(&mut export.as_slice())).unwrap();
        assert_eq!((report.export_size, report.entry_compared), (Some(300), true));
    }
    assert!(!early.contains("bob") && !early.contains("ada"), "a receipt goes to third parties: it does not name who asked");
}

/// As receipts were before they told the isolation class: every line of one that was given out then.
#[test]
fn a_receipt_from_before_the_class_was_told_verifies() {
    let dir = TempDir::new().unwrap();
    let ledger = filled(dir.path(), 20);
    let mut before = predicted(20);
    before.detail.remove("isolation");
    let note = ledger.append_receipted(&before).unwrap();
    let leaf = leaf_hash(&ledger.bundle(0).unwrap()[20].1);
    let detail = &before.detail;
    let lines = format!(
        "insula prediction receipt v1\nlog {ORIGIN}\nentry 20\nleaf {leaf}\ntime 2026-11-18T11:06:40.123476Z\nrequest {}\ndeployment iris\n\
         model {}\nversion 3\npolicy 0123456789abcdef\ninput {}\noutput {}\n",
        before.request, detail["model_sha256"], detail["input_sha256"], detail["output_sha256"]
    );
    let mut signed = Note::new(&lines).unwrap();
    signed.sign(&ledger.signing).unwrap();
    assert_eq!(note, signed.to_string());
    let mut export = Vec::new();
    ledger.export(&mut export).unwrap();
    let report = verify_receipt(note.as_bytes(), &ledger.vkey(), Some(&mut export.as_slice())).unwrap();
    assert_eq!((report.statement.isolation, report.entry_compared), (None, true));
    // The class is signed like everything else: one that the log does not say is a lie that the export tells.
    let mut lie = Note::new(&format!("{lines}isolation gvisor\n")).unwrap();
    lie.sign(&ledger.signing).unwrap();
    let told = verify_receipt(lie.to_string().as_bytes(), &ledger.vkey(), Some(&mut export.as_slice())).unwrap_err();
    assert!(told.to_string().contains("the log says something else"), "{told}");
    for tail in ["isolation\n", "isolatio gvisor\n", "isolation gvisor\nisolation jail\n", "\n"] {
        assert!(format!("{lines}{tail}").parse::<receipt::ReceiptStatement>().is_err(), "{tail:?}");
    }
}

#[test]
fn every_flipped_byte_is_refused() {
    let dir = TempDir::new().unwrap();
    let (ledger, note, index) = told(dir.path());
    let vkey = ledger.vkey();
    let json = serde_json::to_string(&ledger.receipt(index).unwrap()).unwrap();
    for form in [note.clone(), STANDARD.encode(&note), json] {
        assert!(verify_receipt(form.as_bytes(), &vkey, None).is_ok());
        for at in 0..form.len() {
            for mask in [0x01, 0x20, 0x80] {
                let mut bytes = form.clone().into_bytes();
                bytes[at] ^= mask;
                assert!(verify_receipt(&bytes, &vkey, None).is_err(), "byte {at} of `{form}`");
            }
            assert!(verify_receipt(&form.as_bytes()[..at], &vkey, None).is_err(), "cut at {at}");
        }
    }
}

#[test]
fn what_the_log_does_not_say_is_no_receipt() {
    let dir = TempDir::new().unwrap();
    let (ledger, note, index) = told(dir.path());
    let size = ledger.size();
    // A signed lie: the keeper's own key over words that its log does not have. Signature and proof hold, the export tells.
    let leaf = leaf_hash(&ledger.bundle(0).unwrap()[index as usize].1);
    let mut lie = predicted(index);
    lie.detail.insert("output_sha256".into(), predicted(7).detail["output_sha256"].clone());
    let statement = receipt::ReceiptStatement::of(ORIGIN, index, leaf, &lie).unwrap();
    let mut signed = Note::new(&statement.to_string()).unwrap();
    signed.sign(&ledger.signing).unwrap();
    let (signed, vkey) = (signed.to_string(), ledger.vkey());
    let mut export = Vec::new();
    ledger.export(&mut export).unwrap();
    assert!(verify_receipt(signed.as_bytes(), &vkey, None).is_ok());
    let told = verify_receipt(signed.as_bytes(), &vkey, Some(&mut export.as_slice())).unwrap_err();
    assert!(told.to_string().contains("the log says something else"), "{told}");
    // The proof of another entry, another tenant's key, an export that ends too early, or is damaged.
    let receipts = [ledger.receipt(index).unwrap(), ledger.receipt(index - 1).unwrap()];
    let mixed = Receipt { receipt: receipts[0].receipt.clone(), proof: receipts[1].proof.clone() };
    assert!(verify_receipt(serde_json::to_string(&mixed).unwrap().as_bytes(), &vkey, None).is_err());
    let other = SigningKey::from_seed(ORIGIN, &[8; 32]).unwrap().verifying_key().to_string();
    assert!(verify_receipt(note.as_bytes(), &other, None).is_err());
    let renamed = SigningKey::from_seed("insula/0123/bbbb", &[9; 32]).unwrap().verifying_key().to_string();
    assert!(verify_receipt(note.as_bytes(), &renamed, None).is_err(), "the same seed under another tenant's name");
    ledger.append_receipted(&predicted(size)).unwrap();
    let newer = ledger.receipt(size).unwrap().receipt;
    assert!(verify_receipt(newer.as_bytes(), &vkey, Some(&mut export.as_slice())).unwrap_err().to_string().contains("ends before"));
    let middle = export.len() / 2;
    export[middle] ^= 1;
    assert!(verify_receipt(note.as_bytes(), &vkey, Some(&mut export.as_slice())).is_err());
}

#[test]
fn only_answered_predictions_have_one_and_it_is_no_checkpoint() {
    let dir = TempDir::new().unwrap();
    let (ledger, note, index) = told(dir.path());
    let size = ledger.size();
    let refused = Entry { outcome: Outcome::Refused, ..predicted(1) };
    let read = Entry { act: "DatasetRead".into(), ..predicted(1) };
    let mut bare = predicted(1);
    bare.detail.remove("policy");
    for entry in [refused, read, bare] {
        assert!(matches!(ledger.append_receipted(&entry), Err(Error::NotFound(_))));
    }
    assert_eq!(ledger.size(), size, "what gets no receipt is not half written");
    assert!(matches!(ledger.receipt(3), Err(Error::NotFound(_))) && matches!(ledger.receipt(u64::MAX), Err(Error::NotFound(_))));
    let broken = Entry { resource: "deployment:a\nversion 9".into(), ..predicted(1) };
    assert!(ledger.append_receipted(&broken).is_err());
    // One key signs both: neither reads as the other.
    let text = Note::parse(note.as_bytes()).unwrap().text().to_owned();
    assert!(text.parse::<Checkpoint>().is_err());
    assert!(verify_receipt(ledger.checkpoint().unwrap().as_bytes(), &ledger.vkey(), None).is_err());
    assert!(verify_receipt(note.as_bytes(), &ledger.vkey(), None).is_ok_and(|report| report.statement.entry == index));
}
