//! Messages of both directions, damaged and cut: what comes of them does not hang on the pieces in which they arrive, and nothing is
//! taken that could not have been said.

#[path = "../tests/fuzz/mod.rs"]
mod made_up;

use bytes::Bytes;
use made_up::fuzz;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::{
    Batching, Decoder, Fail, FailCode, Format, Frame, FromCell, HEADER_BYTES, Inferred, Inspect, Load, Predict, Predicted, Progress, Run,
    ToCell,
};

fn bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn frame() -> impl Strategy<Value = Frame> {
    let batching = any::<Option<(u32, u32)>>();
    let load = ("[a-z]{0,8}", any::<u64>(), any::<u32>(), batching).prop_map(|(name, bytes, nodes_max, batching)| Load {
        name,
        version: "1".into(),
        bytes,
        nodes_max,
        batching: batching.map(|(max_size, window_us)| Batching { max_size, window_us }),
    });
    let to_cell = prop_oneof![
        Just(ToCell::Ping),
        (any::<u32>(), load.clone()).prop_map(|(slot, load)| ToCell::Load { slot, load }),
        load.clone().prop_map(ToCell::Admit),
        (any::<u32>(), bytes()).prop_map(|(slot, body)| ToCell::Infer { slot, body }),
        (any::<u32>(), bytes(), any::<Index>()).prop_map(|(slot, body, at)| {
            ToCell::InferBinary { slot, json_bytes: u32::try_from(at.index(body.len() + 1)).unwrap(), body }
        }),
        bytes().prop_map(|body| ToCell::InferGrpc { slot: 0, body }),
        bytes().prop_map(ToCell::Block),
        bytes().prop_map(ToCell::Piece),
        any::<u64>().prop_map(|source_bytes| ToCell::Inspect(Inspect {
            source_bytes,
            format: Some(Format::Csv),
            rows_max: 1,
            columns_max: 2
        })),
        load.prop_map(|load| ToCell::Predict(Predict {
            source_bytes: 1,
            format: Format::Csv,
            load,
            features: vec!["a".into()],
            keep: vec![],
            batch_rows: 2
        })),
    ];
    let from_cell = prop_oneof![
        Just(FromCell::Ready),
        (bytes(), any::<Option<Index>>(), any::<Option<(u32, u32, u64)>>()).prop_map(|(body, at, run)| {
            let json_bytes = at.map(|at| u32::try_from(at.index(body.len() + 1)).unwrap());
            FromCell::Inferred(Inferred { body, json_bytes, run: run.map(|(rows, batch, nanos)| Run { rows, batch, nanos }) })
        }),
        bytes().prop_map(FromCell::Output),
        (any::<u64>(), any::<u32>()).prop_map(|(offset, bytes)| FromCell::Read { offset, bytes }),
        "\\PC{0,20}".prop_map(FromCell::Log),
        "\\PC{0,20}".prop_map(|text| FromCell::Fail(Fail::new(FailCode::Invalid, text).at_line(3))),
        (any::<u64>(), any::<u64>()).prop_map(|(done, total)| FromCell::Progress(Progress { stage: "s".into(), done, total })),
        any::<u64>().prop_map(|rows| FromCell::Predicted(Predicted { rows, output_bytes: 1 })),
    ];
    let id = any::<u64>();
    prop_oneof![
        (to_cell, id).prop_map(|(message, id)| message.frame(id).unwrap()),
        (from_cell, id).prop_map(|(message, id)| message.frame(id).unwrap()),
    ]
}

/// Everything that comes out of a decoder that gets these pieces, and whether it broke.
fn decoded(all: &[u8], cuts: &[usize]) -> (Vec<Frame>, bool) {
    let (mut decoder, mut frames, mut fed) = (Decoder::new(), vec![], 0);
    for cut in cuts.iter().copied().chain([all.len()]) {
        decoder.feed(&all[fed..cut.max(fed)]);
        fed = cut.max(fed);
        loop {
            match decoder.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

#[test]
fn damaged_frames_in_any_pieces() {
    let damage = prop::collection::vec((any::<Index>(), any::<u8>()), 0..4);
    let cases =
        (prop::collection::vec(frame(), 1..4), damage, prop::collection::vec(any::<Index>(), 0..4), prop::option::of(any::<Index>()));
    let parsed = std::cell::Cell::new(0u32);
    let done = fuzz(10_000, cases, |(frames, damage, cuts, end)| {
        let mut all: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        for (at, to) in &damage {
            // Half of it in a header, where it does most.
            let at = if to % 2 == 0 { at.index(HEADER_BYTES) } else { at.index(all.len()) };
            all[at] = *to;
        }
        all.truncate(end.map_or(all.len(), |end| end.index(all.len() + 1)));
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len() + 1)).collect();
        cuts.sort_unstable();
        let whole = decoded(&all, &[]);
        prop_assert_eq!(&decoded(&all, &cuts), &whole, "cut at {:?}", cuts);
        if damage.is_empty() && end.is_none() {
            prop_assert_eq!(&whole, &(frames, false));
        }
        let (frames, _) = whole;
        prop_assert!(frames.iter().map(|frame| frame.encode().len()).sum::<usize>() <= all.len(), "no more comes out than went in");
        for frame in frames {
            // What is understood can be said, and said again means the same.
            if let Ok(message) = FromCell::parse(&frame) {
                let again = message.frame(frame.id).unwrap();
                prop_assert_eq!(FromCell::parse(&again).unwrap(), message);
                parsed.set(parsed.get() + 1);
            }
            if let Ok(message) = ToCell::parse(&frame) {
                let again = message.frame(frame.id).unwrap();
                prop_assert_eq!(ToCell::parse(&again).unwrap(), message);
                parsed.set(parsed.get() + 1);
            }
        }
        Ok(())
    });
    assert!(parsed.get() > done / 4, "the cases say something: {}", parsed.get());
}
