//! A byte stream with an end: no connection outlives its lease, whatever runs on it.

use crate::copies::RETRANSMITTED_FOR;
use futures::task::AtomicWaker;
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::oneshot,
    time::{Duration, Instant, Sleep, sleep_until},
};

/// How long the other end may take until its first HTTP/2 bytes.
pub(crate) const OPENING: Duration = Duration::from_secs(5);

/// The length of connections without certificates (`development`).
pub(crate) const PLAINTEXT_LEASE: Duration = Duration::from_secs(3600);

/// What is read of one connection before the others have their turn: some dozen calls. HTTP/2 reads
/// until nothing is left, and a thousand calls that come together would all begin before anything
/// else does.
const SIP: usize = 4096;

/// Cuts a stream from outside.
#[derive(Debug, Default)]
pub(crate) struct Cut {
    cut: AtomicBool,
    waker: AtomicWaker,
}

impl Cut {
    /// Every read and write fails from now on.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// One waker is enough: HTTP/2 reads and writes in one task.
    fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.cut.load(Ordering::Acquire)
    }
}

/// The other end did not begin to speak within [`OPENING`].
#[derive(Debug, Error)]
#[error("the other end said nothing")]
pub(crate) struct Silent;

/// Fails every read and write once it is cut or its lease has ended, and before that if the other
/// end does not begin to speak. The end stands here and not in the tasks above, because here nothing
/// can forget it: HTTP/2 tears its connection and all streams down on the first error.
pub(crate) struct LeasedStream<IO> {
    io: IO,
    cut: Arc<Cut>,
    end: Pin<Box<Sleep>>,
    lease_ends: Instant,
    opening: Option<Opening>,
    /// What was read since this connection last had to wait.
    sipped: usize,
}

struct Opening {
    missing: usize,
    heard: Option<oneshot::Sender<()>>,
}

impl<IO> LeasedStream<IO> {
    /// `missing` bytes have to arrive within [`OPENING`]; `heard` is told once they have.
    pub(crate) fn new(
        io: IO,
        cut: Arc<Cut>,
        lease_ends: Instant,
        missing: usize,
        heard: Option<oneshot::Sender<()>>,
    ) -> Self {
        let first_end = lease_ends.min(Instant::now() + OPENING);
        Self {
            io,
            cut,
            end: Box::pin(sleep_until(first_end)),
            lease_ends,
            opening: Some(Opening { missing, heard }),
            sipped: 0,
        }
    }

    fn check_end(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.cut.is_cut(cx) {
            let why = "the other end is no longer admitted";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        if self.end.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        let timed_out = io::ErrorKind::TimedOut;
        Err(if self.opening.is_some() {
            io::Error::new(timed_out, Silent)
        } else {
            io::Error::new(timed_out, "the certificates' time is over")
        })
    }

    fn has_read(&mut self, bytes: usize) {
        self.sipped += bytes;
        let Some(opening) = &mut self.opening else {
            return;
        };
        opening.missing = opening.missing.saturating_sub(bytes);
        if opening.missing > 0 {
            return;
        }
        if let Some(heard) = opening.heard.take() {
            // Nobody waits any longer: then nobody needs to know.
            let _ = heard.send(());
        }
        self.opening = None;
        self.end.as_mut().reset(self.lease_ends);
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for LeasedStream<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.check_end(cx)?;
        if this.sipped >= SIP {
            this.sipped = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut sip = ReadBuf::new(buf.initialize_unfilled_to(SIP.min(buf.remaining())));
        let read = Pin::new(&mut this.io).poll_read(cx, &mut sip);
        let bytes = sip.filled().len();
        if read.is_pending() {
            this.sipped = 0;
        }
        ready!(read)?;
        buf.advance(bytes);
        this.has_read(bytes);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for LeasedStream<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check_end(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_end(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_end(cx)?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_end(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Low delay, and an end to peers that vanished with data under way.
pub(crate) fn prepare_socket(tcp: &tokio::net::TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    socket2::SockRef::from(tcp).set_tcp_user_timeout(Some(RETRANSMITTED_FOR))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use std::future::poll_fn;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const LEASE: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_stream_ends_with_its_lease_even_if_nothing_happens_on_it() {
        let (ours, mut theirs) = duplex(64);
        let began = Instant::now();
        let mut stream = LeasedStream::new(ours, Arc::default(), began + LEASE, 1, None);
        theirs.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.to_string(), "the certificates' time is over");
        assert!(began.elapsed() >= LEASE);
        assert!(stream.write_all(b"x").await.is_err());
    }

    #[tokio::test]
    async fn a_write_that_is_stuck_ends_with_the_lease_too() {
        let (ours, _theirs) = duplex(8);
        let began = Instant::now();
        let mut stream = LeasedStream::new(ours, Arc::default(), began + LEASE, 1, None);
        let error = stream.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= LEASE);
    }

    #[tokio::test]
    async fn the_first_word_is_told_to_whoever_waits_for_it() {
        let (ours, mut theirs) = duplex(64);
        let (heard, mut hears) = oneshot::channel();
        let mut stream =
            LeasedStream::new(ours, Arc::default(), Instant::now() + LEASE, 2, Some(heard));
        theirs.write_all(b"a").await.unwrap();
        stream.read_u8().await.unwrap();
        assert!(hears.try_recv().is_err());
        theirs.write_all(b"b").await.unwrap();
        stream.read_u8().await.unwrap();
        assert!(hears.try_recv().is_ok());
    }

    #[tokio::test]
    async fn what_comes_all_at_once_is_read_sip_by_sip() {
        let (ours, mut theirs) = duplex(8 * SIP);
        theirs.write_all(&[7; 3 * SIP]).await.unwrap();
        let mut stream = LeasedStream::new(ours, Arc::default(), Instant::now() + LEASE, 1, None);
        let (mut all, mut pauses) = (Vec::new(), 0);
        while all.len() < 3 * SIP {
            let mut room = [0; 8 * SIP];
            let mut room = ReadBuf::new(&mut room);
            let read = poll_fn(|cx| Poll::Ready(Pin::new(&mut stream).poll_read(cx, &mut room)));
            match read.await {
                Poll::Ready(read) => read.unwrap(),
                Poll::Pending => pauses += 1,
            }
            assert!(room.filled().len() <= SIP);
            all.extend_from_slice(room.filled());
        }
        assert_eq!((all, pauses), (vec![7; 3 * SIP], 2));
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_fails_a_read_that_already_waits() {
        let (ours, _theirs) = duplex(8);
        let cut = Arc::new(Cut::default());
        let mut stream = LeasedStream::new(ours, cut.clone(), Instant::now() + 9 * LEASE, 1, None);
        let reading = tokio::spawn(async move { stream.read_u8().await });
        tokio::task::yield_now().await;
        cut.cut();
        let error = reading.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
