//! Datagrams at a rate, as telemetry and name servers know them, and somebody who takes them.

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep},
};

use super::Account;

/// How often datagrams that are due are sent.
const TICK: Duration = Duration::from_millis(1);
/// As many are sent without a look at anything else; who is slower than that does not catch up.
const AT_ONCE: u64 = 2_000;

/// A sender and its settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe is inside tokio's macros"
)]
pub struct Datagrams {
    /// Who gets them.
    pub to: SocketAddrV4,
    /// Datagrams per second.
    pub rate: u32,
    /// Bytes in each.
    pub bytes: usize,
}

/// Who takes datagrams, and throws them away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    clippy::unsafe_derive_deserialize,
    reason = "what is unsafe is inside tokio's macros"
)]
pub struct Sink {
    /// Where they come.
    pub port: u16,
}

impl Datagrams {
    pub(super) async fn run(&self) -> Result<()> {
        let socket = bind(0).await?;
        socket.connect(self.to).await.context("choose a receiver")?;
        let account = Account::default();
        tokio::try_join!(account.keep_reporting(), self.pour(&socket, &account))?;
        Ok(())
    }

    async fn pour(&self, socket: &UdpSocket, account: &Account) -> Result<()> {
        let datagram = vec![b'd'; self.bytes];
        let mut last = Instant::now();
        let mut debt_us: u128 = 0;
        loop {
            sleep(TICK).await;
            let now = Instant::now();
            debt_us += (now - last).as_micros() * u128::from(self.rate);
            last = now;
            let due = u64::try_from(debt_us / 1_000_000).unwrap_or(u64::MAX);
            debt_us %= 1_000_000;
            let mut sent = 0;
            socket.writable().await.context("wait for room")?;
            // It fails where there is no room any more: the rest is for the next round.
            while sent < due.min(AT_ONCE) && socket.try_send(&datagram).is_ok() {
                sent += 1;
            }
            account.change(|tally| tally.started += sent);
        }
    }
}

impl Sink {
    pub(super) async fn run(&self) -> Result<()> {
        let socket = bind(self.port).await?;
        let account = Account::default();
        tokio::try_join!(account.keep_reporting(), take(&socket, &account))?;
        Ok(())
    }
}

async fn take(socket: &UdpSocket, account: &Account) -> Result<()> {
    let mut datagram = [0; 2048];
    loop {
        socket.readable().await.context("wait for a datagram")?;
        let mut taken = 0;
        while taken < AT_ONCE && socket.try_recv(&mut datagram).is_ok() {
            taken += 1;
        }
        account.change(|tally| tally.started += taken);
        tokio::task::yield_now().await;
    }
}

async fn bind(port: u16) -> Result<UdpSocket> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let socket = UdpSocket::bind(address).await;
    socket.with_context(|| format!("bind to {address}"))
}
