//! A server: accepts, answers requests, closes, each as well or as badly as it is told to.

use std::{
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    net::sockopt::set_socket_linger,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::spawn_local,
    time::sleep,
};

use super::Account;

/// How long a server waits before it tries to accept again after it failed.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// A server and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe is inside tokio's macros"
)]
pub struct Serve {
    /// Where it listens, on all addresses.
    pub port: u16,
    /// What it passes to listen().
    pub backlog: u32,
    /// Connections that it serves at once; the others wait in the accept queue.
    pub workers: usize,
    /// Time that one request takes.
    pub service_ms: u64,
    /// Time between two rounds of accept(); 0: accepts whenever a connection is there.
    pub pause_ms: u64,
    /// Bytes of an answer.
    pub answer_bytes: usize,
    /// How a connection ends.
    pub closing: Closing,
    /// A service that it passes each request on to, over a connection of its own.
    pub upstream: Option<SocketAddrV4>,
    /// Its limit of open files (RLIMIT_NOFILE), if not the one it was started with.
    pub descriptors: Option<u64>,
}

/// How a server ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Closing {
    /// First, right after its answer.
    AfterAnswer,
    /// When the client has.
    AfterClient,
    /// Without having read the request, so that the kernel sends a reset.
    Unread,
    /// First, with a reset.
    Reset,
    /// Never, and it does not read either.
    Never,
}

impl Serve {
    /// A server that does everything right: to be spoilt by those who need it bad.
    pub const fn well(port: u16) -> Self {
        Self {
            port,
            backlog: 1024,
            workers: 10_000,
            service_ms: 0,
            pause_ms: 0,
            answer_bytes: 512,
            closing: Closing::AfterClient,
            upstream: None,
            descriptors: None,
        }
    }

    pub(super) async fn run(&self) -> Result<()> {
        self.limit_descriptors()?;
        let socket = TcpSocket::new_v4().context("make a socket")?;
        socket.set_reuseaddr(true).context("reuse the address")?;
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, self.port));
        socket
            .bind(address)
            .with_context(|| format!("bind to {address}"))?;
        let listener = socket.listen(self.backlog).context("listen")?;
        let account = Account::default();
        tokio::try_join!(account.keep_reporting(), self.accept(&listener, &account))?;
        Ok(())
    }

    fn limit_descriptors(&self) -> Result<()> {
        let maximum = getrlimit(Resource::Nofile).maximum;
        let limit = Rlimit {
            current: self.descriptors.or(maximum),
            maximum,
        };
        setrlimit(Resource::Nofile, limit).context("set the limit of open files")
    }

    async fn accept(&self, listener: &TcpListener, account: &Account) -> Result<()> {
        let workers = Arc::new(Semaphore::new(self.workers));
        loop {
            let worker = Arc::clone(&workers).acquire_owned().await?;
            let connection = match self.next(listener).await {
                Ok(connection) => connection,
                Err(error) => {
                    account.fail(&error);
                    sleep(AFTER_FAILURE).await;
                    continue;
                }
            };
            account.change(|tally| tally.started += 1);
            let (serve, account) = (self.clone(), account.clone());
            spawn_local(async move {
                if let Err(error) = serve.answer(connection, &account).await {
                    account.fail(&error);
                }
                drop(worker);
            });
        }
    }

    /// The next connection; with pauses, all that wait are taken before the next pause.
    async fn next(&self, listener: &TcpListener) -> io::Result<TcpStream> {
        if self.pause_ms == 0 {
            return Ok(listener.accept().await?.0);
        }
        loop {
            let waiting = poll_fn(|context| {
                Poll::Ready(match listener.poll_accept(context) {
                    Poll::Ready(accepted) => Some(accepted),
                    Poll::Pending => None,
                })
            });
            if let Some(accepted) = waiting.await {
                return Ok(accepted?.0);
            }
            sleep(Duration::from_millis(self.pause_ms)).await;
        }
    }

    /// Answers requests on one connection until it is closed.
    async fn answer(&self, mut connection: TcpStream, account: &Account) -> io::Result<()> {
        if self.closing == Closing::Unread {
            // `readable` is no promise that anything is there.
            connection.peek(&mut [0]).await?;
            return Ok(());
        }
        if self.closing == Closing::Never {
            let _open = connection;
            return std::future::pending().await;
        }
        if self.closing == Closing::Reset {
            set_socket_linger(&connection, Some(Duration::ZERO))?;
        }
        let answer = vec![b'a'; self.answer_bytes];
        let mut request = [0; 4096];
        while connection.read(&mut request).await? > 0 {
            sleep(Duration::from_millis(self.service_ms)).await;
            if let Some(upstream) = self.upstream {
                ask(upstream).await?;
            }
            connection.write_all(&answer).await?;
            account.change(|tally| tally.answered += 1);
            if matches!(self.closing, Closing::AfterAnswer | Closing::Reset) {
                break;
            }
        }
        Ok(())
    }
}

/// Asks another server, and closes when it has begun to answer.
async fn ask(upstream: SocketAddrV4) -> io::Result<()> {
    let mut connection = TcpStream::connect(upstream).await?;
    connection.write_all(b"request").await?;
    let mut answer = [0; 4096];
    match connection.read(&mut answer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
