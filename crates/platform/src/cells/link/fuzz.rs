//! A cell that says anything at all: whatever comes over the socket, in whatever pieces, each request gets the answer that a reader of the
//! whole would give it, or is lost; only the oldest of the lost was begun.

#[path = "../../../../wire/tests/fuzz/mod.rs"]
mod made_up;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream as Peer;
use std::time::Duration;

use bytes::Bytes;
use made_up::fuzz;
use proptest::prelude::*;
use proptest::sample::Index;
use wire::{BODY_BYTES_MAX, Fail, FailCode, Frame, FromCell, HEADER_BYTES, Inferred, META_BYTES_MAX, Progress, Run, ToCell};

use super::super::socket::{Attach, stream};
use super::{Answer, End, Link};

const ANSWER_BYTES_MAX: usize = 2048;

/// What a cell may say next.
#[derive(Debug, Clone)]
enum Word {
    /// An answer to the request whose turn it is, of this kind.
    Answer(FromCell),
    /// The same for a request so many places away.
    OutOfTurn(FromCell, i64),
    /// An answer with some bytes of its frame replaced.
    Damaged(FromCell, Vec<(Index, u8)>),
    /// An answer whose header announces other lengths.
    Lengths(FromCell, u32, u32),
    /// A frame of any kind.
    Frame(u8, Vec<u8>, Vec<u8>),
    Garbage(Vec<u8>),
    /// The beginning of an answer, and no more of it.
    Cut(FromCell, Index),
}

fn answer() -> impl Strategy<Value = FromCell> {
    let body = prop_oneof![6 => prop::collection::vec(any::<u8>(), 0..60), 1 => prop::collection::vec(any::<u8>(), 2000..2100)];
    let code = prop::sample::select(&[FailCode::Invalid, FailCode::ModelFailed, FailCode::TooLarge, FailCode::Internal][..]);
    prop_oneof![
        1 => Just(FromCell::Ready),
        4 => body.clone().prop_map(|body| FromCell::Inferred(Bytes::from(body).into())),
        2 => (body.clone(), any::<Index>(), any::<Option<(u32, u32, u64)>>()).prop_map(|(body, at, run)| {
            let json_bytes = u32::try_from(at.index(body.len() + 1)).ok();
            let run = run.map(|(rows, batch, nanos)| Run { rows, batch, nanos });
            FromCell::Inferred(Inferred { body: body.into(), json_bytes, run })
        }),
        2 => (code, "\\PC{0,30}").prop_map(|(code, text)| FromCell::Fail(Fail::new(code, text))),
        1 => body.prop_map(|body| FromCell::Output(body.into())),
        1 => (any::<u64>(), any::<u32>()).prop_map(|(offset, bytes)| FromCell::Read { offset, bytes }),
        1 => Just(FromCell::Progress(Progress { stage: "s".into(), done: 1, total: 2 })),
    ]
}

fn word() -> impl Strategy<Value = Word> {
    let bytes = |most| prop::collection::vec(any::<u8>(), 0..most);
    let length =
        prop_oneof![0u32..200, Just(META_BYTES_MAX + 1), Just(BODY_BYTES_MAX), Just(BODY_BYTES_MAX + 1), Just(u32::MAX), 1900u32..2200];
    prop_oneof![
        24 => answer().prop_map(Word::Answer),
        1 => (answer(), -2i64..3).prop_map(|(answer, by)| Word::OutOfTurn(answer, by)),
        3 => (answer(), prop::collection::vec((any::<Index>(), any::<u8>()), 1..4)).prop_map(|(answer, at)| Word::Damaged(answer, at)),
        1 => (answer(), length.clone(), length).prop_map(|(answer, meta, body)| Word::Lengths(answer, meta, body)),
        1 => (any::<u8>(), bytes(40), bytes(40)).prop_map(|(kind, meta, body)| Word::Frame(kind, meta, body)),
        1 => bytes(60).prop_map(Word::Garbage),
        1 => (answer(), any::<Index>()).prop_map(|(answer, at)| Word::Cut(answer, at)),
    ]
}

/// Everything that is said, as bytes.
fn spoken(words: &[Word]) -> Vec<u8> {
    let mut all = Vec::new();
    for (word, id) in words.iter().zip(1u64..) {
        let frame = |answer: &FromCell, id| answer.frame(id).unwrap().encode();
        match word {
            Word::Answer(answer) => all.extend(frame(answer, id)),
            Word::OutOfTurn(answer, by) => all.extend(frame(answer, id.wrapping_add_signed(*by))),
            Word::Damaged(answer, places) => {
                let mut bytes = frame(answer, id);
                for (at, to) in places {
                    let at = at.index(bytes.len());
                    bytes[at] = *to;
                }
                all.extend(bytes);
            }
            Word::Lengths(answer, meta, body) => {
                let mut bytes = frame(answer, id);
                bytes[16..20].copy_from_slice(&meta.to_le_bytes());
                bytes[20..24].copy_from_slice(&body.to_le_bytes());
                all.extend(bytes);
            }
            Word::Frame(kind, meta, body) => {
                all.extend(Frame::new(*kind, 0, id, meta.clone().into(), body.clone().into()).unwrap().encode());
            }
            Word::Garbage(bytes) => all.extend(bytes),
            Word::Cut(answer, at) => {
                let bytes = frame(answer, id);
                all.extend(&bytes[..at.index(bytes.len())]);
            }
        }
    }
    all
}

/// The answers that count, and whether the cell broke the protocol; `None` when both may be said of how it ended.
fn expected(mut bytes: &[u8], asked: usize) -> (Vec<FromCell>, Option<bool>) {
    let mut answers = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let good = FromCell::Ready.frame(0).unwrap().header();
        let (meta, body) = (number(16), number(20));
        if header[..3] != good[..3] || meta > META_BYTES_MAX || body > BODY_BYTES_MAX {
            return (answers, Some(true));
        }
        let length = meta as usize + body as usize;
        if rest.len() < length {
            // Refused at once when it could never be taken; one that is a little too long may also just have ended.
            return (
                answers,
                if length > ANSWER_BYTES_MAX + (128 << 10) {
                    Some(true)
                } else if length > ANSWER_BYTES_MAX {
                    None
                } else {
                    Some(false)
                },
            );
        }
        let (content, behind) = rest.split_at(length);
        let (content_meta, content_body) = content.split_at(meta as usize);
        let frame = Frame::new(
            header[3],
            number(4),
            u64::from_le_bytes(header[8..16].try_into().unwrap()),
            Bytes::copy_from_slice(content_meta),
            Bytes::copy_from_slice(content_body),
        )
        .unwrap();
        let turn = answers.len() as u64 + 1;
        let answers_requests =
            |message: &FromCell| matches!(message, FromCell::Ready | FromCell::Model(_) | FromCell::Inferred(_) | FromCell::Fail(_));
        match FromCell::parse(&frame) {
            Ok(message) if length <= ANSWER_BYTES_MAX && frame.id == turn && turn <= asked as u64 && answers_requests(&message) => {
                answers.push(message)
            }
            _ => return (answers, Some(true)),
        }
        bytes = behind;
    }
    (answers, Some(false))
}

/// What became of the requests when the cell said all this in these pieces, and then left.
async fn outcome(asked: usize, bytes: &[u8], cuts: &[Index]) -> Vec<Answer> {
    let (ours, mut peer) = Peer::pair().unwrap();
    let link = Link::new(stream(ours.into()).unwrap(), Attach::File, ANSWER_BYTES_MAX);
    let question = ToCell::Infer { slot: 1, body: Bytes::from_static(b"{}") };
    let asks: Vec<_> = (0..asked).map(|_| link.ask(&question, None)).collect();
    // It hears all before it speaks: a cell cannot answer what it was not asked.
    let (mut heard, mut piece) = (0, [0; 4096]);
    peer.set_nonblocking(true).unwrap();
    while heard < asked * question.frame(1).unwrap().encode().len() {
        tokio::task::yield_now().await;
        heard += peer.read(&mut piece).unwrap_or(0);
    }
    peer.set_nonblocking(false).unwrap();
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
    places.sort_unstable();
    for piece in places.windows(2) {
        // It may be cut off in the middle of its speech.
        if peer.write_all(&bytes[piece[0]..piece[1]]).is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    drop(peer);
    let mut answers = Vec::new();
    for ask in asks {
        let answer = tokio::time::timeout(Duration::from_secs(10), ask).await;
        answers.push(answer.expect("each request ends").expect("each request is told how"));
    }
    answers
}

#[test]
fn a_cell_that_says_anything_is_believed_as_far_as_it_keeps_the_protocol() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = std::cell::Cell::new([0u32; 3]);
    let cases = (1usize..6, prop::collection::vec(word(), 0..7), prop::collection::vec(any::<Index>(), 0..5));
    let done = fuzz(6_000, cases, |(asked, words, cuts)| {
        let bytes = spoken(&words);
        let (answers, broke) = expected(&bytes, asked);
        let got = runtime.block_on(outcome(asked, &bytes, &cuts));
        for (at, got) in got.iter().enumerate() {
            match (got, answers.get(at)) {
                (Ok(got), Some(expected)) => prop_assert_eq!(&got.0, expected),
                (Err(lost), None) => {
                    prop_assert_eq!(lost.begun, at == answers.len(), "only the oldest that was lost was begun");
                    let told = match lost.end {
                        End::Protocol(_) => true,
                        End::Closed => false,
                        End::Deadline | End::Stopped => return Err(TestCaseError::fail("nobody stopped it")),
                    };
                    prop_assert!(broke.is_none_or(|broke| broke == told), "{:?}", lost.end);
                }
                (got, expected) => return Err(TestCaseError::fail(format!("request {at}: {got:?} is not {expected:?}"))),
            }
        }
        let [mut answered, mut lost, mut broken] = seen.get();
        answered += u32::try_from(answers.len()).unwrap();
        lost += u32::try_from(asked - answers.len()).unwrap();
        broken += u32::from(broke == Some(true));
        seen.set([answered, lost, broken]);
        Ok(())
    });
    let [answered, lost, broken] = seen.get();
    assert!(answered > done / 4 && lost > done / 4 && broken > done / 10, "the cases say something: {answered} {lost} {broken}");
}
