//! A client: opens connections at a rate, whatever becomes of those before, and sends requests.

use std::{io, net::SocketAddrV4, rc::Rc, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rustix::{
    net::sockopt::{set_socket_keepalive, set_socket_linger, set_tcp_keepidle, set_tcp_keepintvl},
    process::{Resource, getrlimit, setrlimit},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::{JoinSet, spawn_local},
    time::{Instant, sleep, timeout},
};

use super::Account;

/// How often connections that are due are begun.
const TICK: Duration = Duration::from_millis(1);
/// Connections that are made at once while the stage is set.
const AT_ONCE: usize = 32;

/// A client and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe is inside tokio's macros"
)]
pub struct Request {
    /// The server.
    pub to: SocketAddrV4,
    /// Different addresses, from that of the server on; usually 1.
    pub spread: u32,
    /// Connections begun per second.
    pub rate: u32,
    /// Connections begun at the same moment.
    pub burst: u32,
    /// Connections open at once, at most.
    pub at_once: usize,
    /// Connections made and closed at once before it counts as ready: each leaves a TIME_WAIT here.
    pub before: u32,
    /// Requests per connection; with 0 a connection is only held open.
    pub requests: u32,
    /// Time between two requests on a connection.
    pub idle_ms: u64,
    /// Bytes of a request.
    pub request_bytes: usize,
    /// Bytes of the answer that it waits for.
    pub answer_bytes: usize,
    /// How long it waits for a connection or an answer before it gives up.
    pub patience_ms: u64,
    /// How a connection ends.
    pub parting: Parting,
    /// Sends keepalive probes after so many seconds without data.
    pub keepalive_s: Option<u64>,
}

/// How a client ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parting {
    /// It closes first, and has the TIME_WAIT.
    First,
    /// It waits for the server to close.
    AfterServer,
    /// With a reset.
    Reset,
}

impl Request {
    /// `rate` connections per second to `to`, with one small request on each.
    pub const fn new(to: SocketAddrV4, rate: u32) -> Self {
        Self {
            to,
            spread: 1,
            rate,
            burst: 1,
            at_once: 10_000,
            before: 0,
            requests: 1,
            idle_ms: 0,
            request_bytes: 64,
            answer_bytes: 512,
            patience_ms: 3_000,
            parting: Parting::First,
            keepalive_s: None,
        }
    }

    pub(super) async fn run(&self) -> Result<()> {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).context("raise the limit of open files")?;
        let client = Rc::new(self.clone());
        prepare(&client).await;
        let account = Account::default();
        tokio::try_join!(account.keep_reporting(), pace(&client, &account))?;
        Ok(())
    }

    /// One connection from begin to end.
    async fn converse(&self, account: &Account) {
        account.change(|tally| tally.started += 1);
        let to = self.destination(account.0.borrow().started);
        let patience = Duration::from_millis(self.patience_ms);
        let begun = Instant::now();
        let mut connection = match timeout(patience, TcpStream::connect(to)).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return account.fail(&error),
            Err(_elapsed) => return account.change(|tally| tally.gave_up += 1),
        };
        let done = async {
            self.prepare(&connection)?;
            self.ask(&mut connection, begun, account).await
        };
        match done.await {
            Ok(()) => {}
            Err(error)
                if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none() =>
            {
                account.change(|tally| tally.gave_up += 1);
            }
            Err(error) => account.fail(&error),
        }
    }

    /// Where a connection of this number goes.
    fn destination(&self, number: u64) -> SocketAddrV4 {
        let step = u32::try_from(number % u64::from(self.spread.max(1))).unwrap_or(0);
        let address = u32::from(*self.to.ip()).wrapping_add(step);
        SocketAddrV4::new(address.into(), self.to.port())
    }

    fn prepare(&self, connection: &TcpStream) -> io::Result<()> {
        if self.parting == Parting::Reset {
            set_socket_linger(connection, Some(Duration::ZERO))?;
        }
        if let Some(seconds) = self.keepalive_s {
            set_tcp_keepidle(connection, Duration::from_secs(seconds))?;
            set_tcp_keepintvl(connection, Duration::from_secs(seconds))?;
            set_socket_keepalive(connection, true)?;
        }
        Ok(())
    }

    /// Sends the requests and reads the answers.
    async fn ask(
        &self,
        connection: &mut TcpStream,
        mut begun: Instant,
        account: &Account,
    ) -> io::Result<()> {
        let patience = Duration::from_millis(self.patience_ms);
        if self.requests == 0 {
            // Nothing ever comes: it returns when the server has closed.
            return until_closed(connection).await;
        }
        for number in 0..self.requests {
            if number > 0 {
                sleep(Duration::from_millis(self.idle_ms)).await;
                begun = Instant::now();
            }
            timeout(patience, self.exchange(connection)).await??;
            let took = begun.elapsed().as_millis();
            account.change(|tally| {
                tally.answered += 1;
                tally.slowest_ms = tally
                    .slowest_ms
                    .max(u64::try_from(took).unwrap_or(u64::MAX));
            });
        }
        if self.parting == Parting::AfterServer {
            timeout(patience, until_closed(connection)).await??;
        }
        Ok(())
    }

    /// One request and its answer.
    async fn exchange(&self, connection: &mut TcpStream) -> io::Result<()> {
        connection
            .write_all(&vec![b'r'; self.request_bytes])
            .await?;
        let mut answer = vec![0; 16_384];
        let mut left = self.answer_bytes;
        while left > 0 {
            let got = connection.read(&mut answer).await?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left = left.saturating_sub(got);
        }
        Ok(())
    }
}

/// Reads, and throws away, until the peer has closed.
async fn until_closed(connection: &mut TcpStream) -> io::Result<()> {
    let mut thrown_away = [0; 512];
    while connection.read(&mut thrown_away).await? > 0 {}
    Ok(())
}

/// Makes and closes the connections that must have been there before.
async fn prepare(client: &Request) {
    let mut tasks = JoinSet::new();
    let to = client.to;
    for _ in 0..client.before {
        while tasks.len() >= AT_ONCE {
            tasks.join_next().await;
        }
        tasks.spawn_local(async move { TcpStream::connect(to).await.map(drop) });
    }
    // What could not be connected is not missed: the signs of the incident are waited for.
    tasks.join_all().await;
}

/// Begins connections at the rate asked for.
async fn pace(client: &Rc<Request>, account: &Account) -> Result<()> {
    let places = Arc::new(Semaphore::new(client.at_once));
    let begun = Instant::now();
    let burst = u128::from(client.burst.max(1));
    let mut started: u128 = 0;
    loop {
        let due = begun.elapsed().as_micros() * u128::from(client.rate) / 1_000_000;
        while started + burst <= due {
            started += burst;
            for _ in 0..client.burst {
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                    break;
                };
                let (client, account) = (Rc::clone(client), account.clone());
                spawn_local(async move {
                    client.converse(&account).await;
                    drop(place);
                });
            }
        }
        sleep(TICK).await;
    }
}
