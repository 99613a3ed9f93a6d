//! What is hostile, made up: how much of it, from which seed, and damage to protobuf messages that knows how they are built.
//!
//! Tests of several crates include this file. Each runs the same cases every time, so that a build is never red by chance; whoever has
//! more time gives `INSULA_FUZZ_TIMES=100`, and gets other cases with each `INSULA_FUZZ_SEED`.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "a test's own tools")]
#![allow(missing_docs, unreachable_pub, dead_code, reason = "shared by tests of which none uses all of it")]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestCaseError, TestRunner};

/// Seed where nobody names one.
const SEED: u64 = 20_261_130;
/// Time for one test, for each of the times that it shall run.
const TEST_MAX: Duration = Duration::from_secs(10);
/// Cases between two looks at the clock.
const PART: u32 = 250;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: `{text}`")))
}

/// Runs `test` on so many made-up values, fewer on a machine that is too slow for them, and tells how many; a failure shows the smallest
/// value that fails, and how to get there again.
pub fn fuzz<S: Strategy>(cases: u32, values: S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) -> u32 {
    let (seed, times) = (number("INSULA_FUZZ_SEED").unwrap_or(SEED), number("INSULA_FUZZ_TIMES").unwrap_or(1).max(1));
    let times = u32::try_from(times).unwrap_or(u32::MAX);
    let (cases, time_max) = (cases.saturating_mul(times), TEST_MAX.saturating_mul(times));
    let (began, mut done) = (Instant::now(), 0);
    while done < cases && began.elapsed() < time_max {
        // Each part has a seed of its own, so that one that fails can be run first.
        let own = seed.wrapping_add((done / PART).into());
        let config = Config { cases: PART, rng_seed: RngSeed::Fixed(own), failure_persistence: None, ..Config::default() };
        if let Err(error) = TestRunner::new(config).run(&values, &test) {
            panic!("{error}\nagain: INSULA_FUZZ_SEED={own}");
        }
        done += PART;
    }
    println!("{done} of {cases} cases in {:.1} s with INSULA_FUZZ_SEED={seed}", began.elapsed().as_secs_f64());
    done
}

/// One field of a message as it is written, which need not be well written.
#[derive(Debug, Clone)]
pub struct Field {
    number: u64,
    kind: u8,
    content: Vec<u8>,
    /// What the announced length is off by.
    off: i64,
    /// Bytes by which key and length are longer than they must be.
    padding: u8,
}

/// The fields of a well-written message, groups aside.
pub fn split(mut message: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = take_varint(&mut message);
        let kind = u8::try_from(key & 7).expect("three bits");
        let content = match kind {
            0 => {
                let before = message;
                take_varint(&mut message);
                before[..before.len() - message.len()].to_vec()
            }
            1 => take(&mut message, 8),
            2 => {
                let length = take_varint(&mut message);
                take(&mut message, usize::try_from(length).expect("a length"))
            }
            5 => take(&mut message, 4),
            other => panic!("a field of kind {other}"),
        };
        fields.push(Field { number: key >> 3, kind, content, off: 0, padding: 0 });
    }
    fields
}

fn take(from: &mut &[u8], bytes: usize) -> Vec<u8> {
    let (taken, rest) = from.split_at(bytes);
    *from = rest;
    taken.to_vec()
}

fn take_varint(from: &mut &[u8]) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = from[0];
        *from = &from[1..];
        value |= u64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return value;
        }
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64, padding: u8) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 && padding == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
        if value == 0 {
            out.extend(std::iter::repeat_n(0x80, usize::from(padding) - 1));
            return out.push(0);
        }
    }
}

/// The message of these fields.
pub fn join(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        put_varint(&mut out, field.number << 3 | u64::from(field.kind & 7), field.padding);
        if field.kind == 2 {
            put_varint(&mut out, (field.content.len() as u64).saturating_add_signed(field.off), field.padding);
        }
        out.extend_from_slice(&field.content);
    }
    out
}

/// What can be done to a message.
#[derive(Debug, Clone)]
pub enum Damage {
    Drop(Index),
    Repeat(Index, Index),
    Swap(Index, Index),
    Renumber(Index, u64),
    Kind(Index, u8),
    Length(Index, i64),
    Pad(Index, u8),
    Fill(Index, Vec<u8>),
    Insert(Index, u64, u8, Vec<u8>),
    /// To the message inside a field, where there is one.
    Inside(Index, Vec<Damage>),
    Byte(Index, u8),
    Cut(Index),
}

/// Some damage to messages whose fields have small numbers; two levels deep.
pub fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let flat = flat_damage();
    let inner = prop_oneof![3 => flat_damage(), 1 => (any::<Index>(), prop::collection::vec(flat_damage(), 1..3)).prop_map(|(at, all)| Damage::Inside(at, all))];
    let nested = (any::<Index>(), prop::collection::vec(inner, 1..3)).prop_map(|(at, all)| Damage::Inside(at, all));
    prop::collection::vec(prop_oneof![flat, nested], 0..4)
}

fn flat_damage() -> BoxedStrategy<Damage> {
    let number = prop_oneof![8 => 0u64..12, 1 => Just((1 << 29) - 1), 1 => Just(1u64 << 29), 1 => any::<u32>().prop_map(u64::from)];
    let bytes = prop::collection::vec(any::<u8>(), 0..12);
    let length = prop_oneof![-3i64..4, Just(i64::MAX), Just(-1 << 40), Just(1 << 31)];
    prop_oneof![
        any::<Index>().prop_map(Damage::Drop),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Damage::Swap(one, other)),
        (any::<Index>(), number.clone()).prop_map(|(at, number)| Damage::Renumber(at, number)),
        (any::<Index>(), 0u8..8).prop_map(|(at, kind)| Damage::Kind(at, kind)),
        (any::<Index>(), length).prop_map(|(at, off)| Damage::Length(at, off)),
        (any::<Index>(), 1u8..11).prop_map(|(at, padding)| Damage::Pad(at, padding)),
        (any::<Index>(), bytes.clone()).prop_map(|(at, content)| Damage::Fill(at, content)),
        (any::<Index>(), number, 0u8..8, bytes).prop_map(|(at, number, kind, content)| Damage::Insert(at, number, kind, content)),
        (any::<Index>(), any::<u8>()).prop_map(|(at, to)| Damage::Byte(at, to)),
        any::<Index>().prop_map(Damage::Cut),
    ]
    .boxed()
}

/// The message after all that was done to it.
pub fn damaged(message: &[u8], all: &[Damage]) -> Vec<u8> {
    let mut fields = split(message);
    for damage in all {
        on_fields(&mut fields, damage);
    }
    let mut bytes = join(&fields);
    for damage in all {
        match damage {
            Damage::Byte(at, to) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *to;
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            _ => {}
        }
    }
    bytes
}

fn on_fields(fields: &mut Vec<Field>, damage: &Damage) {
    if let Damage::Insert(at, number, kind, content) = damage {
        let field = Field { number: *number, kind: *kind, content: content.clone(), off: 0, padding: 0 };
        return fields.insert(at.index(fields.len() + 1), field);
    }
    if fields.is_empty() {
        return;
    }
    let count = fields.len();
    match damage {
        Damage::Drop(at) => drop(fields.remove(at.index(count))),
        Damage::Repeat(from, to) => {
            let field = fields[from.index(count)].clone();
            fields.insert(to.index(count + 1), field);
        }
        Damage::Swap(one, other) => fields.swap(one.index(count), other.index(count)),
        Damage::Renumber(at, number) => fields[at.index(count)].number = *number,
        Damage::Kind(at, kind) => fields[at.index(count)].kind = *kind,
        Damage::Length(at, off) => fields[at.index(count)].off = *off,
        Damage::Pad(at, padding) => fields[at.index(count)].padding = *padding,
        Damage::Fill(at, content) => fields[at.index(count)].content.clone_from(content),
        Damage::Inside(at, all) => {
            let field = &mut fields[at.index(count)];
            if field.kind == 2 && is_message(&field.content) {
                field.content = damaged(&field.content, all);
            }
        }
        Damage::Insert(..) | Damage::Byte(..) | Damage::Cut(..) => {}
    }
}

/// Whether [`split`] can take it.
fn is_message(mut bytes: &[u8]) -> bool {
    let varint = |bytes: &mut &[u8]| {
        let length = bytes.iter().take(10).position(|byte| *byte < 0x80)? + 1;
        // Ten bytes may be more than 64 bits.
        (length < 10).then(|| take_varint(bytes))
    };
    while !bytes.is_empty() {
        let Some(key) = varint(&mut bytes) else { return false };
        let length = match key & 7 {
            0 => varint(&mut bytes).map(|_| 0),
            1 => Some(8),
            2 => varint(&mut bytes),
            5 => Some(4),
            _ => None,
        };
        let Some(rest) = length.and_then(|length| bytes.get(usize::try_from(length).ok()?..)) else { return false };
        bytes = rest;
    }
    true
}
