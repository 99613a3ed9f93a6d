//! Bodies: what comes in is bounded in bytes, silence and pace, and takes turns where it is large ([`crate::bulk`]); what goes out is one
//! piece or a stream, and holds the request's place until it is gone.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use parking_lot::Mutex;
use platform::tenancy::{Collecting, Digested};
use tokio::time::timeout;

use crate::bulk::{Bulk, FREE_BYTES, LARGE_BYTES, Payer, Purse};
use crate::config::RequestLimits;
use crate::error::{Fail, Result};
use crate::watch::Work;

/// Most of a refused body that is still read, in bytes. Many clients look for the answer only when they have sent everything, and
/// take a connection that closes before for a broken one.
const REFUSED_BYTES_MAX: u64 = 64 << 20;
/// The same in time.
const REFUSED_TIME_MAX: Duration = Duration::from_secs(5);

/// Silence inside a conversation.
pub(crate) const CONVERSATION_SILENCE_MAX: Duration = Duration::from_mins(10);

/// A request's body. Nothing is read before a handler asks.
pub(crate) struct RequestBody {
    incoming: Option<Incoming>,
    limits: Arc<RequestLimits>,
    started: Instant,
    /// Whether its sender may be silent for long: it is a conversation.
    patient: bool,
    mark: Arc<BodyMark>,
    /// Who pays for its bytes, once there are more than are free.
    purse: Option<Arc<Purse>>,
    /// Bytes that are not paid for.
    owed: u64,
    /// Bytes up to which they are free.
    free: u64,
}

/// What is known of a body after its reader took it.
pub(crate) struct BodyMark {
    bulk: Arc<Bulk>,
    /// Who has to answer for it.
    owner: OnceLock<Payer>,
    /// What went wrong inside a stream whose reader knows only `io::Error`.
    fault: Mutex<Option<Fail>>,
    read: AtomicU64,
    /// What its reader left.
    rest: Mutex<Option<Incoming>>,
    /// A small body that was read whole.
    whole: Mutex<Option<Bytes>>,
}

/// A request's body on its way to another node.
pub(crate) enum Again {
    /// All of it; empty when there was none.
    Whole(Bytes),
    /// Nothing of it was read yet.
    Coming(RequestBody),
}

impl BodyMark {
    fn new(bulk: Arc<Bulk>) -> Self {
        let (fault, rest, whole) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { bulk, owner: OnceLock::new(), fault, read: AtomicU64::new(0), rest, whole }
    }

    /// Who has to answer for it, if that is known.
    pub(crate) fn owner(&self) -> Option<Payer> {
        self.owner.get().copied()
    }

    /// The fault, once.
    pub(crate) fn take_fault(&self) -> Option<Fail> {
        self.fault.lock().take()
    }

    /// Bytes read so far.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The body once more, for another node. None when a part of it was read and is gone.
    pub(crate) fn again(self: &Arc<Self>, limits: &Arc<RequestLimits>) -> Option<Again> {
        if let Some(whole) = self.whole.lock().take() {
            return Some(Again::Whole(whole));
        }
        if self.read() > 0 {
            return None;
        }
        let rest = self.rest.lock().take();
        Some(rest.map_or(Again::Whole(Bytes::new()), |incoming| Again::Coming(RequestBody::marked(incoming, limits.clone(), self.clone()))))
    }

    /// Lets a refused body come to its end, within bounds, and forgets it. A client that waits for leave to send (`waits`) has sent
    /// nothing and gets no leave.
    pub(crate) async fn let_come(&self, waits: bool) {
        let Some(mut rest) = self.rest.lock().take() else { return };
        if (waits && self.read() == 0) || rest.size_hint().lower() > REFUSED_BYTES_MAX {
            return;
        }
        let purse = self.bulk.purse(self.owner());
        let (mut bytes, mut owed) = (0, 0);
        let coming = async {
            while let Some(Ok(frame)) = rest.frame().await
                && bytes <= REFUSED_BYTES_MAX
            {
                let length = frame.data_ref().map_or(0, |piece| u64::try_from(piece.len()).unwrap_or(u64::MAX));
                (bytes, owed) = (bytes + length, owed + length);
                if purse.is_due(owed) {
                    self.bulk.pay(&purse, owed).await;
                    owed = 0;
                }
            }
        };
        // Whether it came or not: the answer is the same.
        let _ = timeout(REFUSED_TIME_MAX, coming).await;
        purse.leave(owed);
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(purse) = self.purse.take() {
            purse.leave(self.owed);
        }
        if let Some(incoming) = self.incoming.take() {
            *self.mark.rest.lock() = Some(incoming).filter(|incoming| !incoming.is_end_stream());
        }
    }
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, limits: Arc<RequestLimits>, bulk: Arc<Bulk>) -> Self {
        Self::marked(incoming, limits, Arc::new(BodyMark::new(bulk)))
    }

    fn marked(incoming: Incoming, limits: Arc<RequestLimits>, mark: Arc<BodyMark>) -> Self {
        Self { incoming: Some(incoming), limits, started: Instant::now(), patient: false, mark, purse: None, owed: 0, free: FREE_BYTES }
    }

    /// Who has to answer for it, as soon as that is known.
    pub(crate) fn belongs_to(&self, owner: Payer) {
        // Operators are no company: a tenant beside them is alone.
        if let Payer::Tenant(_) = owner {
            self.mark.bulk.came(owner);
        }
        // Of a stream it was known before.
        let _ = self.mark.owner.set(owner);
    }

    /// What stays known of it.
    pub(crate) fn mark(&self) -> Arc<BodyMark> {
        self.mark.clone()
    }

    /// The body; what stays behind is empty.
    pub(crate) fn take(&mut self) -> Self {
        let (limits, mark) = (self.limits.clone(), self.mark.clone());
        let (purse, owed) = (self.purse.take(), std::mem::take(&mut self.owed));
        Self { incoming: self.incoming.take(), limits, started: self.started, patient: self.patient, mark, purse, owed, free: self.free }
    }

    /// The same as one half of a conversation: its sender may be silent for [`CONVERSATION_SILENCE_MAX`], and has no pace to keep.
    pub(crate) fn patient(mut self) -> Self {
        self.patient = true;
        self
    }

    /// Something new begins in it: as free as the beginning of a body.
    pub(crate) fn begin(&mut self) {
        self.free = self.mark.read().saturating_add(FREE_BYTES);
    }

    /// The next piece, when it is this body's turn.
    pub(crate) async fn piece(&mut self, bytes_max: u64) -> Result<Option<Bytes>> {
        if let Some(purse) = self.purse.as_ref().filter(|purse| purse.is_due(self.owed)) {
            let begun = Instant::now();
            self.mark.bulk.pay(purse, self.owed).await;
            // Who is cut while it waits still owes it.
            self.owed = 0;
            // It is not the sender who was slow.
            self.started += begun.elapsed();
        }
        let Some(incoming) = &mut self.incoming else { return Ok(None) };
        if incoming.size_hint().lower() > bytes_max.saturating_sub(self.mark.read()) {
            return Err(too_large(bytes_max));
        }
        loop {
            let silence = if self.patient { CONVERSATION_SILENCE_MAX } else { self.limits.body_idle_timeout };
            let Ok(frame) = timeout(silence, incoming.frame()).await else {
                return Err(Fail::new("body_timeout", "the body stopped coming").closing());
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| Fail::new("upload_interrupted", "the body broke off before its end").closing())?;
            let Ok(piece) = frame.into_data() else { continue };
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            let read = self.mark.read.fetch_add(length, Ordering::Relaxed).saturating_add(length);
            if read > bytes_max {
                return Err(too_large(bytes_max));
            }
            let counted = self.started.elapsed().saturating_sub(self.limits.body_pace_grace);
            if !self.patient && read < self.limits.body_pace_bytes.saturating_mul(counted.as_secs()) {
                return Err(Fail::new("body_timeout", "the body came too slowly").closing());
            }
            if read > self.free {
                self.owed = self.owed.saturating_add(length.min(read - self.free));
                self.purse.get_or_insert_with(|| self.mark.bulk.purse(self.mark.owner()));
            }
            return Ok(Some(piece));
        }
    }

    /// Adds a piece to what is collected of this body, which may become `most` bytes: with room for all of it, once it is large.
    pub(crate) async fn collect(&mut self, collected: &mut Collecting, piece: &[u8], most: u64) -> Result<()> {
        let length = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        if length(collected.len()) <= LARGE_BYTES && length(collected.len() + piece.len()) > LARGE_BYTES {
            let begun = Instant::now();
            let purse = self.mark.bulk.purse(self.mark.owner());
            collected.keep(self.mark.bulk.room(&purse, most).await?);
            self.started += begun.elapsed();
            let missing = most.saturating_sub(length(collected.len()));
            collected.reserve(usize::try_from(missing).unwrap_or(0));
        }
        collected.push(piece);
        Ok(())
    }

    /// Its length, when the request says it.
    pub(crate) fn length(&self) -> Option<u64> {
        self.incoming.as_ref().and_then(|incoming| incoming.size_hint().exact())
    }

    /// All of a small body, which another node can be given as well.
    pub(crate) async fn small(self, bytes_max: u64) -> Result<Bytes> {
        let mark = self.mark();
        let bytes = self.whole(bytes_max).await?.bytes().clone();
        *mark.whole.lock() = Some(bytes.clone());
        Ok(bytes)
    }

    /// All of it, with its digest.
    pub(crate) async fn whole(mut self, bytes_max: u64) -> Result<Digested> {
        let Some(first) = self.piece(bytes_max).await? else { return Ok(Bytes::new().into()) };
        let incoming = self.incoming.as_ref();
        if incoming.is_none_or(Body::is_end_stream) {
            return Ok(first.into());
        }
        let coming = incoming.map_or(0, |incoming| incoming.size_hint().lower());
        let said = coming.saturating_add(u64::try_from(first.len()).unwrap_or(u64::MAX));
        // Nobody has to say how long it is.
        let most = if coming > 0 { said } else { bytes_max };
        let mut all = Collecting::default();
        all.reserve(usize::try_from(said.min(LARGE_BYTES)).unwrap_or(0));
        all.push(&first);
        while let Some(piece) = self.piece(bytes_max).await? {
            self.collect(&mut all, &piece, most).await?;
        }
        Ok(all.finish())
    }

    /// Piece by piece. A fault ends the stream with an error and is left in its [`BodyMark`].
    pub(crate) fn stream(self, bytes_max: u64) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
        stream::unfold(Some(self), move |body| async move {
            let mut body = body?;
            match body.piece(bytes_max).await {
                Ok(None) => None,
                Ok(Some(piece)) => Some((Ok(piece), Some(body))),
                Err(fail) => {
                    *body.mark.fault.lock() = Some(fail);
                    Some((Err(std::io::Error::other("the body broke off")), None))
                }
            }
        })
    }
}

fn too_large(bytes_max: u64) -> Fail {
    Fail::new("too_large", format!("the body is larger than {bytes_max} bytes")).closing()
}

/// An answer's body.
pub(crate) struct AnswerBody {
    content: Content,
    /// The request's place among those in flight.
    work: Option<Work>,
}

enum Content {
    Full(Bytes),
    /// Known already, but more than one.
    Frames(std::vec::IntoIter<Frame<Bytes>>),
    Stream {
        frames: BoxStream<'static, Result<Frame<Bytes>>>,
        length: Option<u64>,
    },
}

impl AnswerBody {
    /// One piece.
    pub(crate) fn full(bytes: Bytes) -> Self {
        Self { content: Content::Full(bytes), work: None }
    }

    /// Many pieces; `length` when it is known.
    pub(crate) fn stream(pieces: BoxStream<'static, Result<Bytes>>, length: Option<u64>) -> Self {
        Self::stream_frames(pieces.map(|piece| piece.map(Frame::data)).boxed(), length)
    }

    /// The same with trailers, or without pieces.
    pub(crate) fn stream_frames(frames: BoxStream<'static, Result<Frame<Bytes>>>, length: Option<u64>) -> Self {
        Self { content: Content::Stream { frames, length }, work: None }
    }

    /// A few pieces, and trailers.
    pub(crate) fn frames(frames: Vec<Frame<Bytes>>) -> Self {
        Self { content: Content::Frames(frames.into_iter()), work: None }
    }

    /// Keeps the request in flight until the body is gone.
    pub(crate) fn hold(&mut self, work: Work) {
        self.work = Some(work);
    }

    /// Bytes, as far as they are known.
    pub(crate) fn length(&self) -> u64 {
        match &self.content {
            Content::Full(bytes) => u64::try_from(bytes.len()).unwrap_or(u64::MAX),
            Content::Frames(frames) => {
                let bytes: usize = frames.as_slice().iter().filter_map(Frame::data_ref).map(Bytes::len).sum();
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
            Content::Stream { length, .. } => length.unwrap_or(0),
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.content {
            Content::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Content::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Content::Frames(frames) => Poll::Ready(frames.next().map(Ok)),
            Content::Stream { frames, .. } => frames.as_mut().poll_next(cx).map(|next| {
                next.map(|frame| {
                    // The status is sent already: cutting the body short is what a client can see.
                    frame.map_err(|fail| {
                        fail.log();
                        std::io::Error::other("the answer broke off")
                    })
                })
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Full(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Content::Stream { length: Some(length), .. } => SizeHint::with_exact(*length),
            Content::Frames(_) | Content::Stream { .. } => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for AnswerBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.content {
            Content::Full(bytes) => write!(f, "{}", String::from_utf8_lossy(bytes)),
            Content::Frames(frames) => write!(f, "{:?}", frames.as_slice()),
            Content::Stream { length, .. } => write!(f, "stream of {length:?}"),
        }
    }
}
