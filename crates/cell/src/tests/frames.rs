//! A service that says anything at all: the cell answers what it can read, in order, and ends where it cannot. It never panics.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::fuzz::made_up::fuzz;
use bytes::Bytes;
use proptest::prelude::*;
use proptest::sample::Index;
use wire::{Decoder, FailCode, Format, Frame, FromCell, Inspect, Load, ToCell};

use super::{TWO, engine};

#[derive(Debug, Clone)]
enum Word {
    Said(ToCell),
    Damaged(ToCell, Vec<(Index, u8)>),
    Frame(u8, Vec<u8>, Vec<u8>),
    Garbage(Vec<u8>),
}

fn message() -> impl Strategy<Value = ToCell> {
    let body =
        prop_oneof![1 => Just(Bytes::from_static(TWO.as_bytes())), 1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from)];
    let slot = 0u32..2;
    prop_oneof![
        4 => Just(ToCell::Ping),
        4 => (slot.clone(), body.clone()).prop_map(|(slot, body)| ToCell::Infer { slot, body }),
        2 => (slot.clone(), body.clone()).prop_map(|(slot, body)| ToCell::InferGrpc { slot, body }),
        2 => (slot.clone(), body.clone()).prop_map(|(slot, body)| ToCell::Score { slot, body }),
        2 => (slot.clone(), body.clone(), any::<Index>()).prop_map(|(slot, body, at)| {
            ToCell::InferBinary { slot, json_bytes: u32::try_from(at.index(body.len() + 1)).unwrap(), body }
        }),
        1 => slot.prop_map(|slot| ToCell::Unload { slot }),
        1 => Just(ToCell::Load { slot: 1, load: Load { name: "m".into(), version: "1".into(), bytes: 7, nodes_max: 1, batching: None } }),
        1 => body.prop_map(ToCell::Block),
        1 => (0u64..3).prop_map(|source_bytes| ToCell::Inspect(Inspect { source_bytes, format: Some(Format::Csv), rows_max: 9, columns_max: 9 })),
    ]
}

fn word() -> impl Strategy<Value = Word> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        12 => message().prop_map(Word::Said),
        4 => (message(), prop::collection::vec((any::<Index>(), any::<u8>()), 1..4)).prop_map(|(message, places)| Word::Damaged(message, places)),
        1 => (any::<u8>(), bytes(), bytes()).prop_map(|(kind, meta, body)| Word::Frame(kind, meta, body)),
        1 => bytes().prop_map(Word::Garbage),
    ]
}

fn spoken(words: &[Word]) -> Vec<u8> {
    let mut all = Vec::new();
    for (word, id) in words.iter().zip(1u64..) {
        match word {
            Word::Said(message) => all.extend(message.frame(id).unwrap().encode()),
            Word::Damaged(message, places) => {
                let mut bytes = message.frame(id).unwrap().encode();
                for (at, to) in places {
                    let at = at.index(bytes.len());
                    bytes[at] = *to;
                }
                all.extend(bytes);
            }
            Word::Frame(kind, meta, body) => {
                all.extend(Frame::new(*kind, 0, id, meta.clone().into(), body.clone().into()).unwrap().encode())
            }
            Word::Garbage(bytes) => all.extend(bytes),
        }
    }
    all
}

/// The requests that can be read, and whether one of them is a job, which has its own conversation.
fn requests(bytes: &[u8]) -> (Vec<(u64, ToCell)>, bool) {
    let (mut decoder, mut all) = (Decoder::new(), vec![]);
    decoder.feed(bytes);
    while let Ok(Some(frame)) = decoder.next() {
        // No memory file comes with any of these, and no model in pieces.
        match ToCell::parse(&frame) {
            Ok(message) if !message.carries_descriptor() && !matches!(message, ToCell::Piece(_)) => all.push((frame.id, message)),
            _ => break,
        }
    }
    let job = all.iter().any(|(_, message)| matches!(message, ToCell::Inspect(_) | ToCell::Preview(_) | ToCell::Train(_)));
    (all, job)
}

#[test]
fn a_service_that_says_anything_is_answered_as_far_as_it_can_be_read() {
    let Some(engine) = engine() else { return };
    crate::serve::quiet_panics();
    let seen = Cell::new([0u32; 2]);
    let done = fuzz(4_000, prop::collection::vec(word(), 0..7), |words| {
        let bytes = spoken(&words);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = std::thread::spawn(move || crate::serve::serve(engine, crate::link::Link::new(theirs.into())).is_ok());
        let (mut writer, mut reader) = (ours.try_clone().unwrap(), ours);
        // It may have ended already.
        let _ = writer.write_all(&bytes).and_then(|()| writer.shutdown(Shutdown::Write));
        let mut answered = Vec::new();
        let whole = reader.read_to_end(&mut answered).is_ok();
        prop_assert!(serving.join().is_ok(), "the loop panicked");
        let mut decoder = Decoder::new();
        decoder.feed(&answered);
        let mut answers = vec![];
        while let Some(frame) = decoder.next().unwrap() {
            let answer = FromCell::parse(&frame).unwrap();
            if let FromCell::Fail(fail) = &answer {
                prop_assert!(fail.code != FailCode::Internal || !fail.message.contains("internal error at"), "{}", fail.message);
            }
            answers.push((frame.id, answer));
        }
        let (requests, job) = requests(&bytes);
        if !job && whole {
            let ids: Vec<u64> = answers.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(ids, requests.iter().map(|(id, _)| *id).collect::<Vec<_>>());
            for ((_, answer), (_, request)) in answers.iter().zip(&requests) {
                prop_assert_eq!(matches!(request, ToCell::Ping), *answer == FromCell::Ready, "nothing is loaded, so only a ping succeeds");
            }
        }
        let [mut good, mut jobs] = seen.get();
        good += u32::try_from(answers.len()).unwrap();
        jobs += u32::from(job);
        seen.set([good, jobs]);
        Ok(())
    });
    let [answers, jobs] = seen.get();
    assert!(answers > done / 4 && jobs > done / 20, "the cases say something: {answers} answers, {jobs} jobs");
}
