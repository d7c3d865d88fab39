//! Whose connections hold TCP's memory: the service in whose queues most waits.

use super::super::super::{
    finding::process,
    places,
    sizing::{bytes, counted},
    window::{Netns, Window},
};
use crate::{
    observe::{
        diag::{Listener, Queued},
        processes::Process,
    },
    report::diagnosis::{Affected, Finding},
};

/// A service that holds most of what waits.
pub(super) struct Holder<'a> {
    window: &'a Window,
    netns: &'a Netns,
    /// Whether its connections were accepted here.
    is_served: bool,
    /// Whether it is what was received, by an application here that does not read it.
    is_unread: bool,
    port: u16,
    queued: Queued,
    /// Who listens there, if it is here.
    listener: Option<&'a Listener>,
    /// That process, or else the one that holds the connection with most.
    process: Option<&'a Process>,
}

impl<'a> Holder<'a> {
    /// Who does not read what has come, or else who has sent what is not taken.
    pub(super) fn of(window: &'a Window, used_pages: u64) -> Option<Self> {
        let reader = Self::with_most(window, used_pages, true);
        reader.or_else(|| {
            let sender = Self::with_most(window, used_pages, false)?;
            Some(sender.reader().unwrap_or(sender))
        })
    }

    /// Who does not read what it has sent, if that is here: a service with as many connections that have unread data.
    fn reader(&self) -> Option<Self> {
        let key = (true, self.port);
        let tables = self.window.namespaces.iter();
        let mut readers = tables.filter_map(|netns| {
            let queued = netns.after.sockets.as_ref()?.queued.get(&key)?;
            let is_reader =
                queued.received > 0 && queued.connections * 2 >= self.queued.connections;
            is_reader.then_some((netns, *queued))
        });
        let (netns, queued) = readers.next().filter(|_| !self.is_served)?;
        let sent = queued.sent + self.queued.sent;
        let queued = Queued { sent, ..queued };
        Some(Self::new(self.window, netns, (key, queued), true))
    }

    /// That which has half of what waits in all queues of one direction, and an eighth of these pages; the rest is what
    /// buffers cost beside their data, and the other direction.
    fn with_most(window: &'a Window, used_pages: u64, is_unread: bool) -> Option<Self> {
        let waiting = |queued: &Queued| {
            if is_unread {
                queued.received
            } else {
                queued.sent
            }
        };
        let tables = window.namespaces.iter();
        let tables = tables.filter_map(|netns| Some((netns, netns.after.sockets.as_ref()?)));
        let all = tables.flat_map(|(netns, table)| table.queued.iter().map(move |it| (netns, it)));
        let all: Vec<_> = all.collect();
        let bytes: u64 = all.iter().map(|(_, (_, queued))| waiting(queued)).sum();
        let (netns, (key, queued)) = all
            .into_iter()
            .max_by_key(|(_, (_, queued))| waiting(queued))?;
        let most = waiting(queued);
        let is_most = most * 2 >= bytes && most * 8 >= used_pages * window.page_bytes;
        (is_most && most > 0).then(|| Self::new(window, netns, (*key, *queued), is_unread))
    }

    fn new(
        window: &'a Window,
        netns: &'a Netns,
        ((is_served, port), queued): ((bool, u16), Queued),
        is_unread: bool,
    ) -> Self {
        let listener = places::at_port(netns, port).find(|_| is_served);
        let process = listener.and_then(|listener| window.holder(listener));
        Self {
            window,
            netns,
            is_served,
            is_unread,
            port,
            queued,
            listener,
            process: process.or_else(|| window.processes.holders(queued.ino).next()),
        }
    }

    fn connections(&self) -> String {
        let side = if self.is_served { "at" } else { "to" };
        let connections = counted(self.queued.connections.into(), "connection");
        format!("{connections} {side} port {}", self.port)
    }

    fn name(&self) -> String {
        match self.process {
            Some(process) => format!("{} (pid {})", process.comm, process.pid),
            None => format!("who holds them ({}ss -tnp)", self.netns.enter()),
        }
    }

    fn affected(&self) -> Option<Affected> {
        if let Some(listener) = self.listener {
            return Some(self.window.affected_listener(self.netns, listener));
        }
        let Process { pid, comm, .. } = self.process?;
        Some(process(
            Some(*pid),
            Some(comm.clone()),
            Some(self.netns.inode),
        ))
    }

    /// Says who it is.
    pub(super) fn shown(&self, found: Finding) -> Finding {
        let Queued { received, sent, .. } = self.queued;
        found
            .counted(
                format!(
                    "{} of what waits in queues of connections are of {}{}: {} not read, {} not acknowledged",
                    bytes(self.queued.bytes()),
                    self.connections(),
                    self.netns.place(),
                    bytes(received),
                    bytes(sent)
                ),
                self.queued.bytes(),
                "bytes",
                "sock_diag Recv-Q, Send-Q",
            )
            .hits(self.affected())
    }

    /// Says what to do about it.
    pub(super) fn advise(&self, found: Finding) -> Finding {
        let (connections, who) = (self.connections(), self.name());
        let text = if self.is_unread {
            format!(
                "{connections} hold the memory: have {who} read what comes over them, or close them; a smaller buffer \
                 (SO_RCVBUF, tcp_rmem) lets each hold less"
            )
        } else {
            format!(
                "{connections} hold the memory, as the other end does not take what was sent: have {who} end such connections \
                 (send_timeout, TCP_USER_TIMEOUT); a smaller buffer (SO_SNDBUF, tcp_wmem) lets each hold less"
            )
        };
        found.application(text, &[], "who reads slowly gets less at once")
    }
}
