//! The conversation with a serving cell: many requests in flight, each answered once.
//!
//! A cell answers in order. So of the requests in flight when it dies only the oldest can be at fault, unless requests are joined (see
//! `pool`); all younger ones may be asked again elsewhere, because a prediction leaves nothing behind. For the same reason a cell that
//! leaves its oldest request unanswered for too long is stuck, whoever waits.
//!
//! What a cell said before it went counts: when it takes no more, what it has answered is read before the conversation ends.
//!
//! Whatever arrives must answer a request in flight and be of a kind that answers requests. Anything else ends the conversation:
//! so a flood is stopped by its first frame, and what is held in memory is bounded by what was asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jail::memory::SealedFile;
use parking_lot::Mutex;
use rustix::net::Shutdown;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use wire::{Fail, FailCode, Frame, FromCell, ModelInfo, ToCell};

use super::socket::{Allowed, Attach, End, Inbox, Outbox, more};

/// A request that will not be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost {
    /// It may have been begun. If not, asking elsewhere is safe.
    pub(crate) begun: bool,
    /// Why.
    pub(crate) end: End,
}

/// An answer, and since when nothing was before it in the cell; or none.
pub(crate) type Answer = Result<(FromCell, Instant), Lost>;

/// The service's end of the conversation. Dropping it ends it.
pub(crate) struct Link {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

struct Shared {
    stream: UnixStream,
    /// What was asked and nobody has begun to send. Never locked for longer than it takes to add to it.
    asked: Mutex<Outbox>,
    /// What is being sent. A cell that is woken by it may have the core at once, so nobody waits for this lock.
    sending: Mutex<Outbox>,
    backlog: Notify,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    next_id: u64,
    requests: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// When the oldest request became the oldest.
    since: Instant,
    end: Option<End>,
}

impl Link {
    /// Over a connected stream; answers longer than `answer_bytes_max` end the conversation. Needs a tokio runtime.
    pub(crate) fn new(stream: UnixStream, attach: Attach, answer_bytes_max: usize) -> Self {
        let shared = Arc::new(Shared {
            stream,
            asked: Mutex::new(Outbox::new(attach)),
            sending: Mutex::new(Outbox::new(attach)),
            backlog: Notify::new(),
            waiting: Mutex::new(Waiting { next_id: 1, requests: BTreeMap::new(), since: Instant::now(), end: None }),
        });
        let reader = tokio::spawn(Arc::clone(&shared).read(answer_bytes_max)).abort_handle();
        let writer = tokio::spawn(Arc::clone(&shared).write()).abort_handle();
        Self { shared, tasks: [reader, writer] }
    }

    /// Sends a request; the receiver gets its answer. Dropping the receiver drops the answer, not the request.
    pub(crate) fn ask(&self, message: &ToCell, attach: Option<SealedFile>) -> oneshot::Receiver<Answer> {
        let receiver = self.prepare(message, attach);
        self.send();
        receiver
    }

    /// As [`Link::ask`], and leaves at the next [`Link::send`]: for whoever holds a lock that others want.
    pub(crate) fn prepare(&self, message: &ToCell, attach: Option<SealedFile>) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let mut asked = self.shared.asked.lock();
        let id = {
            let mut waiting = self.shared.waiting.lock();
            if let Some(end) = waiting.end.clone() {
                let _ = sender.send(Err(Lost { begun: false, end }));
                return receiver;
            }
            let id = waiting.next_id;
            waiting.next_id += 1;
            if waiting.requests.is_empty() {
                waiting.since = Instant::now();
            }
            waiting.requests.insert(id, sender);
            id
        };
        if let Err(error) = asked.push(message, id, attach) {
            let fail = Fail::new(FailCode::TooLarge, error.to_string());
            if let Some(sender) = self.shared.waiting.lock().requests.remove(&id) {
                let _ = sender.send(Ok((FromCell::Fail(fail), Instant::now())));
            }
        }
        receiver
    }

    /// Sends what was prepared. Tried at once, which is the usual case and saves a task switch; the writer takes over when the socket is full.
    pub(crate) fn send(&self) {
        match self.shared.send() {
            Ok(true) => {}
            Ok(false) => self.shared.backlog.notify_one(),
            Err(_) => self.shared.takes_no_more(),
        }
    }

    /// How long the oldest request in flight has been the oldest.
    pub(crate) fn stuck_for(&self) -> Option<Duration> {
        let waiting = self.shared.waiting.lock();
        (!waiting.requests.is_empty()).then(|| waiting.since.elapsed())
    }

    /// Ends the conversation; every request in flight is lost.
    pub(crate) fn end(&self, end: End) {
        self.shared.end(end);
    }

    /// Why it ended, if it has.
    pub(crate) fn ended(&self) -> Option<End> {
        self.shared.waiting.lock().end.clone()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.end(End::Stopped);
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shared {
    async fn read(self: Arc<Self>, answer_bytes_max: usize) {
        let info = ModelInfo {
            inputs: vec![],
            outputs: vec![],
            opsets: vec![],
            nodes: 0,
            producer: String::new(),
            resident_bytes: 0,
            smoke_run: false,
        };
        let allowed = Allowed::of(&[
            FromCell::Ready,
            FromCell::Model(info),
            FromCell::Inferred(Bytes::new().into()),
            FromCell::Fail(Fail::new(FailCode::Internal, "")),
        ]);
        let mut inbox = Inbox::new(answer_bytes_max);
        let end = loop {
            let answered = match inbox.next(&self.stream).await {
                Ok(frame) => self.answer(&allowed, &frame),
                Err(end) => Err(end),
            };
            if let Err(end) = answered {
                break end;
            }
        };
        self.end(end);
    }

    fn answer(&self, allowed: &Allowed, frame: &Frame) -> Result<(), End> {
        let (sender, message, begun) = {
            let mut waiting = self.waiting.lock();
            // In order: an answer to anything but the oldest request cannot come from a cell that works in order.
            if waiting.requests.first_key_value().is_none_or(|(oldest, _)| *oldest != frame.id) {
                return Err(End::Protocol(format!("an answer to request {}, which is not the next one", frame.id)));
            }
            // Parsed before it leaves the map, so that a malformed answer still finds its request begun.
            let message = allowed.parse(frame)?;
            let begun = std::mem::replace(&mut waiting.since, Instant::now());
            (waiting.requests.remove(&frame.id), message, begun)
        };
        if let Some(sender) = sender {
            // Whoever asked may have left.
            let _ = sender.send(Ok((message, begun)));
        }
        Ok(())
    }

    async fn write(self: Arc<Self>) {
        loop {
            self.backlog.notified().await;
            loop {
                match self.send() {
                    Ok(true) => break,
                    Ok(false) => {
                        if more(&self.stream).await.is_err() {
                            return self.takes_no_more();
                        }
                    }
                    Err(_) => return self.takes_no_more(),
                }
            }
        }
    }

    /// Sends what the socket takes now; `true` when nothing is left, or when somebody is at it, who looks again afterwards.
    fn send(&self) -> std::io::Result<bool> {
        loop {
            let Some(mut sending) = self.sending.try_lock() else { return Ok(true) };
            sending.append(&mut self.asked.lock());
            if !sending.flush(&self.stream)? {
                return Ok(false);
            }
            drop(sending);
            if self.asked.lock().is_empty() {
                return Ok(true);
            }
        }
    }

    /// The cell takes no more: what it has said already is read, and behind that the conversation ends, whatever it still says.
    fn takes_no_more(&self) {
        if rustix::net::shutdown(&self.stream, Shutdown::Both).is_err() {
            self.end(End::Closed);
        }
    }

    fn end(&self, end: End) {
        let requests = {
            let mut waiting = self.waiting.lock();
            if waiting.end.is_some() {
                return;
            }
            waiting.end = Some(end.clone());
            std::mem::take(&mut waiting.requests)
        };
        for (at, (_, sender)) in requests.into_iter().enumerate() {
            let _ = sender.send(Err(Lost { begun: at == 0, end: end.clone() }));
        }
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as Peer;

    use super::*;
    use wire::{BODY_BYTES_MAX, Decoder};

    const ANSWER_BYTES_MAX: usize = 1 << 20;

    /// A link and the cell's end of it, to be hostile with.
    fn pair() -> (Link, Peer) {
        let (ours, theirs) = Peer::pair().unwrap();
        (Link::new(super::super::socket::stream(ours.into()).unwrap(), Attach::File, ANSWER_BYTES_MAX), theirs)
    }

    fn infer(link: &Link) -> oneshot::Receiver<Answer> {
        link.ask(&ToCell::Infer { slot: 1, body: Bytes::from_static(b"{}") }, None)
    }

    fn inferred(id: u64, body: &'static [u8]) -> Vec<u8> {
        FromCell::Inferred(Bytes::from_static(body).into()).frame(id).unwrap().encode()
    }

    /// Waits until the cell has so many requests.
    async fn heard(peer: &mut Peer, requests: usize) {
        peer.set_nonblocking(true).unwrap();
        let (mut decoder, mut piece, mut heard) = (Decoder::new(), [0; 4096], 0);
        while heard < requests {
            match peer.read(&mut piece) {
                Ok(read) => decoder.feed(&piece[..read]),
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
            while decoder.next().unwrap().is_some() {
                heard += 1;
            }
        }
        peer.set_nonblocking(false).unwrap();
    }

    async fn patient<T>(future: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), future).await.expect("within ten seconds")
    }

    async fn end_of(link: &Link) -> End {
        patient(async {
            loop {
                match link.ended() {
                    Some(end) => return end,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        })
        .await
    }

    #[tokio::test]
    async fn requests_are_pipelined_and_answered_in_order() {
        let (link, mut peer) = pair();
        let answers: Vec<_> = (0..3).map(|_| infer(&link)).collect();
        peer.write_all(&[inferred(1, b"a"), inferred(2, b"b"), inferred(3, b"c")].concat()).unwrap();
        let mut bodies = vec![];
        for answer in answers {
            let Ok((FromCell::Inferred(inferred), _)) = patient(answer).await.unwrap() else { panic!("not inferred") };
            bodies.push(inferred.body);
        }
        assert_eq!(bodies, ["a", "b", "c"]);
        assert_eq!(link.stuck_for(), None);
    }

    #[tokio::test]
    async fn hostile_frames_end_the_conversation_and_nothing_else() {
        let mut too_long = FromCell::Ready.frame(1).unwrap().header();
        too_long[20..24].copy_from_slice(&(BODY_BYTES_MAX).to_le_bytes());
        let mut endless = too_long;
        endless[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        let cases: Vec<(&str, Vec<u8>)> = vec![
            ("garbage", vec![0xAB; 4096]),
            ("unknown id", inferred(9, b"x")),
            ("answered twice", [inferred(1, b"x"), inferred(1, b"x")].concat()),
            ("out of order", inferred(2, b"x")),
            ("over the answer's bound", too_long.to_vec()),
            ("over every bound", endless.to_vec()),
            ("a read nobody allows", FromCell::Read { offset: 0, bytes: 1 }.frame(1).unwrap().encode()),
            ("an output nobody asked for", FromCell::Output(Bytes::from_static(b"x")).frame(1).unwrap().encode()),
            ("a frame of the other direction", ToCell::Ping.frame(1).unwrap().encode()),
            ("meta that is no model", {
                let kind = FromCell::Fail(Fail::new(FailCode::Invalid, "x")).frame(1).unwrap().kind;
                Frame::new(kind, 0, 1, Bytes::from_static(b"{]"), Bytes::new()).unwrap().encode()
            }),
        ];
        for (case, bytes) in cases {
            let (link, mut peer) = pair();
            let (first, second) = (infer(&link), infer(&link));
            peer.write_all(&bytes).unwrap();
            let end = end_of(&link).await;
            assert!(matches!(end, End::Protocol(_)), "{case}: {end:?}");
            let (first, second) = (patient(first).await.unwrap(), patient(second).await.unwrap());
            let lost = [first, second].into_iter().filter_map(Result::err).collect::<Vec<_>>();
            assert!(!lost.is_empty(), "{case}");
            assert_eq!(lost.iter().filter(|lost| lost.begun).count(), 1, "{case}: exactly the oldest was begun");
            assert!(patient(infer(&link)).await.unwrap().is_err(), "{case}: nothing can be asked any more");
        }
    }

    #[tokio::test]
    async fn a_flood_is_stopped_by_its_first_frame() {
        let (link, mut peer) = pair();
        let flood = std::thread::spawn(move || {
            let frame = FromCell::Log("x".repeat(4000)).frame(1).unwrap().encode();
            let mut sent = 0u64;
            while sent < 1 << 30 && peer.write_all(&frame).is_ok() {
                sent += frame.len() as u64;
            }
            sent
        });
        let end = end_of(&link).await;
        assert!(matches!(end, End::Protocol(_)), "{end:?}");
        drop(link);
        // The socket is gone with the link's tasks: the flood ends after what fitted into the socket, not after a gigabyte.
        let sent = tokio::task::spawn_blocking(move || flood.join().unwrap()).await.unwrap();
        assert!(sent < 16 << 20, "{sent} bytes were taken");
    }

    #[tokio::test]
    async fn only_the_oldest_was_begun_when_a_cell_dies() {
        let (link, peer) = pair();
        let answers: Vec<_> = (0..3).map(|_| infer(&link)).collect();
        drop(peer);
        let mut begun = vec![];
        for answer in answers {
            begun.push(patient(answer).await.unwrap().unwrap_err().begun);
        }
        assert_eq!(begun, [true, false, false]);
        assert_eq!(link.ended(), Some(End::Closed));
    }

    #[tokio::test]
    async fn what_a_cell_answered_before_it_went_is_read() {
        for closes in [true, false] {
            let (link, mut peer) = pair();
            let (first, second) = (infer(&link), infer(&link));
            heard(&mut peer, 2).await;
            peer.write_all(&inferred(1, b"a")).unwrap();
            // It is not read before the third is asked: nothing is waited for. Either the cell is gone, or it only listens no more.
            let peer = (!closes).then_some(peer).inspect(|peer| peer.shutdown(std::net::Shutdown::Read).unwrap());
            let third = infer(&link);
            assert_eq!(patient(first).await.unwrap().unwrap().0, FromCell::Inferred(Bytes::from_static(b"a").into()));
            let lost = [patient(second).await.unwrap().unwrap_err(), patient(third).await.unwrap().unwrap_err()];
            assert_eq!(lost, [true, false].map(|begun| Lost { begun, end: End::Closed }), "closes: {closes}");
            drop(peer);
        }
    }

    #[tokio::test]
    async fn a_cell_that_does_not_read_blocks_nobody() {
        let (link, mut peer) = pair();
        let body = Bytes::from(vec![7u8; 4 << 20]);
        let answers: Vec<_> = (0..4).map(|_| link.ask(&ToCell::Infer { slot: 0, body: body.clone() }, None)).collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(link.stuck_for().is_some_and(|stuck| stuck >= Duration::from_millis(40)));
        // Now it reads: everything arrives whole and in order, although it was written in pieces.
        let reader = std::thread::spawn(move || {
            let (mut decoder, mut ids, mut piece) = (Decoder::new(), vec![], vec![0u8; 1 << 16]);
            while ids.len() < 4 {
                let got = peer.read(&mut piece).unwrap();
                decoder.feed(&piece[..got]);
                while let Some(frame) = decoder.next().unwrap() {
                    assert!(frame.body.len() == 4 << 20 && frame.body.iter().all(|byte| *byte == 7));
                    ids.push(frame.id);
                }
            }
            for id in &ids {
                peer.write_all(&inferred(*id, b"ok")).unwrap();
            }
            (ids, peer)
        });
        for answer in answers {
            assert!(patient(answer).await.unwrap().is_ok());
        }
        assert_eq!(reader.join().unwrap().0, [1, 2, 3, 4]);
    }

    #[tokio::test]
    async fn a_request_waits_until_those_before_it_are_answered() {
        let (link, mut peer) = pair();
        let before = Instant::now();
        let (_unload, first, second) = (link.ask(&ToCell::Unload { slot: 0 }, None), infer(&link), infer(&link));
        tokio::time::sleep(Duration::from_millis(30)).await;
        let ready = FromCell::Ready.frame(1).unwrap().encode();
        peer.write_all(&[ready, inferred(2, b"a")].concat()).unwrap();
        let first = patient(first).await.unwrap().unwrap().1 - before;
        // Its own work is no waiting.
        tokio::time::sleep(Duration::from_millis(500)).await;
        peer.write_all(&inferred(3, b"b")).unwrap();
        let second = patient(second).await.unwrap().unwrap().1 - before;
        assert!(
            first >= Duration::from_millis(30) && second >= first && second < first + Duration::from_millis(400),
            "{first:?} {second:?}"
        );
    }

    #[tokio::test]
    async fn whoever_leaves_does_not_break_the_order() {
        let (link, mut peer) = pair();
        drop(infer(&link));
        let second = infer(&link);
        peer.write_all(&[inferred(1, b"a"), inferred(2, b"b")].concat()).unwrap();
        assert_eq!(patient(second).await.unwrap().unwrap().0, FromCell::Inferred(Bytes::from_static(b"b").into()));
    }
}
