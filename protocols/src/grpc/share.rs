//! What one caller may have under way at a time, over all of its connections.
//!
//! HTTP/2 bounds what lies in a connection's window, and each kind of call bounds how many may
//! wait; but a request that never ends belongs to no kind yet. Thousands of them on hundreds of
//! connections would take all memory.

use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};
use tonic::Status;

/// Requests of one caller at a time. Which one is a stop is seen once it is read, so one more is read,
/// and marked [`Crowded`] for the service to refuse what is no stop, ...
pub const REQUESTS: usize = 2048;

/// ... until there are so many that none can be read any more.
const REQUESTS_AND_STOPS: usize = 4096;

/// The bytes of all of them, ...
const BYTES: usize = 32 * 1024 * 1024;

/// ... the first of each aside: a stop is smaller, and whatever its caller has under way, a stop
/// gets in.
const FREE: usize = 4096;

/// Marks a request, among its extensions, whose caller has as many under way as one may have. Only a
/// stop may go on.
#[derive(Debug, Clone, Copy)]
pub struct Crowded;

impl Crowded {
    /// What others are refused with.
    pub fn status(self) -> Status {
        Status::resource_exhausted(format!(
            "this caller has {REQUESTS} requests under way, as many as one may have; nothing was done, try again later"
        ))
    }
}

/// One caller's requests.
#[derive(Debug, Default)]
pub(super) struct Share {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl Share {
    /// One more request. Where there are as many as there may be, it cannot be read.
    pub(super) fn begin(self: &Arc<Self>) -> Arc<Taken> {
        let before = self.requests.fetch_add(1, Ordering::AcqRel);
        Arc::new(Taken {
            share: self.clone(),
            bytes: AtomicUsize::new(0),
            crowded: before >= REQUESTS,
            one_too_many: before >= REQUESTS_AND_STOPS,
        })
    }
}

/// What one request takes of its caller's share; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Taken {
    share: Arc<Share>,
    bytes: AtomicUsize,
    crowded: bool,
    one_too_many: bool,
}

impl Taken {
    pub(super) fn crowded(&self) -> Option<Crowded> {
        self.crowded.then_some(Crowded)
    }

    fn begun(&self) -> Result<(), Status> {
        if self.one_too_many {
            return Err(Status::resource_exhausted(format!(
                "this caller has {REQUESTS_AND_STOPS} requests under way, as many as one may have; nothing was done"
            )));
        }
        Ok(())
    }

    fn take(&self, more: usize) -> Result<(), Status> {
        let before = self.bytes.fetch_add(more, Ordering::AcqRel);
        let counted = paid(before + more) - paid(before);
        let all = self.share.bytes.fetch_add(counted, Ordering::AcqRel) + counted;
        if counted > 0 && all > BYTES {
            return Err(Status::resource_exhausted(
                "this caller's unfinished requests take as much memory as one caller's may; nothing was done",
            ));
        }
        Ok(())
    }
}

/// What counts of so many bytes.
fn paid(bytes: usize) -> usize {
    bytes.saturating_sub(FREE)
}

impl Drop for Taken {
    fn drop(&mut self) {
        let counted = paid(*self.bytes.get_mut());
        self.share.bytes.fetch_sub(counted, Ordering::AcqRel);
        self.share.requests.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A request's body, counted as it comes in. What is too much ends it with the status to answer, as
/// if the caller's connection had failed: so it is refused where all that cannot be read is.
pub(super) struct Counted<B> {
    body: B,
    taken: Arc<Taken>,
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, taken: Arc<Taken>) -> Self {
        Self { body, taken }
    }
}

impl<B> Body for Counted<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.taken.begun()?;
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            other => return Poll::Ready(other.map(|end| end.map_err(Into::into))),
        };
        let size = frame.data_ref().map_or(0, Bytes::len);
        let counted = self.taken.take(size);
        Poll::Ready(Some(counted.map(|()| frame).map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        !self.taken.one_too_many && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body. Until it is sent it is kept for its caller, who need not read it, so it takes a
/// place of its caller's requests as long.
pub(super) struct Held {
    body: tonic::body::Body,
    _taken: Arc<Taken>,
}

impl Held {
    pub(super) fn new(body: tonic::body::Body, taken: Arc<Taken>) -> Self {
        Self {
            body,
            _taken: taken,
        }
    }
}

impl Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn one_caller_has_so_many_requests_and_no_more() {
        let share = Arc::<Share>::default();
        let mut open: Vec<_> = (0..REQUESTS).map(|_| share.begin()).collect();
        assert!(open.iter().all(|taken| taken.crowded().is_none()));
        open.extend((REQUESTS..REQUESTS_AND_STOPS).map(|_| share.begin()));
        assert!(
            open[REQUESTS..]
                .iter()
                .all(|taken| taken.crowded().is_some())
        );
        assert!(open.iter().all(|taken| taken.begun().is_ok()));
        share.begin().begun().unwrap_err();
        open.pop();
        share.begin().begun().unwrap();
        drop(open);
        assert_eq!(share.requests.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn bytes_run_out_for_large_requests_and_never_for_a_stop() {
        let share = Arc::<Share>::default();
        let large: Vec<_> = (0..BYTES / (60 * 1024)).map(|_| share.begin()).collect();
        for request in &large {
            request.take(FREE).unwrap();
            request.take(60 * 1024).unwrap();
        }
        let one_more = share.begin();
        one_more.take(60 * 1024).unwrap_err();
        let stop = share.begin();
        stop.take(1000).unwrap();
        stop.take(FREE - 1000).unwrap();
        drop((large, one_more, stop));
        assert_eq!(share.bytes.load(Ordering::Relaxed), 0);
    }
}
