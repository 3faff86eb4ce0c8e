//! The kernel's table, as one netlink socket sees it.
//!
//! The kernel works a request off while it is being sent, and a listing while it is being read, so nothing here
//! ever waits; but a listing walks the whole table of the machine, which takes milliseconds even where little is in it.
//! Call all of this from a thread that may be held up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::Socket;
use nix::errno::Errno;

use super::ConntrackError;
use super::entry::{Entry, Flow, Transport, Tuple};
use super::message::{self, Kind, Message};
use super::socket;

pub(super) type Result<T, E = ConntrackError> = std::result::Result<T, E>;

/// Requests sent at once.
const BATCH: usize = 256;
/// What the kernel answers waits here; an answer takes a good kilobyte of it.
const RECEIVE_BUFFER: usize = 2 << 20;

/// What every kernel has that tracks connections, whichever way it can be asked for them.
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// What every kernel has.
const SYSCTLS: &str = "/proc/sys/net/core";

/// Whether the kernel tracks connections in the calling thread's network namespace, or might. If not, nothing there
/// translates addresses or filters by a connection's state; and a socket for the table would load what does.
#[must_use]
pub fn is_tracking() -> bool {
    Path::new(COUNT).exists() || !Path::new(SYSCTLS).exists()
}

/// What to do with an entry that is there already, with the same translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    Update,
    Keep,
}

/// What became of an entry that was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// It was not there.
    New,
    /// Likewise; but this kernel does not have the helper, so further connections that this one agrees upon are not
    /// expected.
    WithoutHelper,
    /// It was there with the same translation, and is up to date now.
    Updated,
    /// It was there with the same translation, and was left alone.
    Kept,
    /// It is not there, or something else is.
    Refused(Refusal),
}

/// Why an entry was not added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The connection is there, translated otherwise.
    TranslatedOtherwise,
    /// Another connection has the same answers: this node translates it, or did.
    AnswersTaken,
    /// What room is left is for the node's own connections.
    NoRoom,
    /// The kernel's answer.
    Kernel(Errno),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TranslatedOtherwise => f.write_str("there already, translated otherwise"),
            Self::AnswersTaken => f.write_str("there already, as this node translates it itself"),
            Self::NoRoom => {
                f.write_str("its table is nearly full: raise net.netfilter.nf_conntrack_max there")
            }
            Self::Kernel(Errno::ENOSPC | Errno::ENOMEM) => {
                f.write_str("its table is full: raise net.netfilter.nf_conntrack_max there")
            }
            Self::Kernel(errno) => write!(f, "the kernel says {errno}"),
        }
    }
}

/// The table of the namespace in which it was opened.
pub struct Table {
    pub(super) socket: Socket,
    pub(super) sequence: u32,
    buffer: Vec<u8>,
}

/// The kernel's answer to one request: nothing if all went well, an entry, or why not.
type Answer = Result<Option<Entry>, Errno>;

impl Table {
    /// Opens the table of the calling thread's network namespace.
    ///
    /// # Errors
    /// No such socket can be had.
    pub fn open() -> Result<Self> {
        let open = |source| ConntrackError::Open { source };
        let socket = socket::open(RECEIVE_BUFFER).map_err(open)?;
        // Acknowledgements without the request in them.
        socket.set_cap_ack(true).map_err(open)?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: socket::buffer(),
        })
    }

    /// Asks for an entry that nobody has.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the caller not the right to use it.
    pub fn probe(&mut self) -> Result<()> {
        let nobody = Tuple {
            source: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            protocol: 0,
            transport: Transport::None,
            zone: None,
        };
        let flow = Flow {
            original: nobody,
            zone: 0,
        };
        self.find(&flow).map(drop)
    }

    /// Adds entries; what became of each is told in their order.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the caller not the right to use it. Some of the entries may have been added.
    pub fn add(&mut self, entries: &[Entry], existing: Existing) -> Result<Vec<Added>> {
        const DOING: &str = "add connection tracking entries";
        let flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL;
        let taken = self.taken_answers(entries)?;
        let requests = entries
            .iter()
            .zip(&taken)
            .filter(|(_, taken)| !**taken)
            .map(|(entry, _)| Message::create(flags, entry, entry.possible_helper()));
        let mut answers = self.ask(DOING, requests)?.into_iter();
        let mut added = Vec::with_capacity(entries.len());
        for (entry, taken) in entries.iter().zip(taken) {
            if taken {
                added.push(Added::Refused(Refusal::AnswersTaken));
                continue;
            }
            added.push(match answers.next().unwrap_or(Err(Errno::EIO)) {
                Ok(_) if entry.helper.as_deref() != entry.possible_helper() => Added::WithoutHelper,
                Ok(_) => Added::New,
                Err(Errno::EPERM) => return Err(ConntrackError::kernel(DOING, Errno::EPERM)),
                Err(Errno::EOPNOTSUPP) if entry.helper.is_some() => {
                    let without = Message::create(flags, entry, None);
                    match self.ask_one(DOING, without)? {
                        Ok(_) => Added::WithoutHelper,
                        Err(errno) => Added::Refused(Refusal::Kernel(errno)),
                    }
                }
                Err(Errno::EEXIST) => self.settle(entry, existing)?,
                Err(errno) => Added::Refused(Refusal::Kernel(errno)),
            });
        }
        Ok(added)
    }

    /// Of which of these another connection has the answers. The kernel would see it, too; but where an entry is
    /// translated, it would choose another port then, and the connection would be another one.
    fn taken_answers(&mut self, entries: &[Entry]) -> Result<Vec<bool>> {
        const DOING: &str = "look up connection tracking entries by their answers";
        let answers = |entry: &Entry| Flow {
            original: entry.reply,
            zone: entry.zone,
        };
        let translated = entries.iter().filter(|entry| entry.is_translated());
        let requests =
            translated.map(|entry| Message::about(Kind::Get, NLM_F_REQUEST, &answers(entry)));
        let mut there = self.ask(DOING, requests)?.into_iter();
        let taken = |entry: &Entry| {
            entry.is_translated()
                && matches!(there.next(), Some(Ok(Some(there))) if there.flow() != entry.flow())
        };
        Ok(entries.iter().map(taken).collect())
    }

    /// Something of this entry is there already.
    fn settle(&mut self, wanted: &Entry, existing: Existing) -> Result<Added> {
        const DOING: &str = "update a connection tracking entry";
        let Some(there) = self.find(&wanted.flow())? else {
            return Ok(Added::Refused(Refusal::AnswersTaken));
        };
        if there.reply != wanted.reply || there.original != wanted.original {
            return Ok(Added::Refused(Refusal::TranslatedOtherwise));
        }
        if existing == Existing::Keep {
            return Ok(Added::Kept);
        }
        let update = Message::update(NLM_F_REQUEST, &there, wanted);
        Ok(match self.ask_one(DOING, update)? {
            Ok(_) => Added::Updated,
            Err(errno) => Added::Refused(Refusal::Kernel(errno)),
        })
    }

    /// The entry that a packet of this flow belongs to.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the caller not the right to use it.
    pub fn find(&mut self, flow: &Flow) -> Result<Option<Entry>> {
        Ok(self.read(&[*flow])?.pop())
    }

    /// The entries of these flows, as far as they are there: as [`Table::list`], without a walk through the table.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the caller not the right to use it.
    pub fn read(&mut self, flows: &[Flow]) -> Result<Vec<Entry>> {
        const DOING: &str = "look up connection tracking entries";
        let requests = flows
            .iter()
            .map(|flow| Message::about(Kind::Get, NLM_F_REQUEST, flow));
        let mut entries = Vec::with_capacity(flows.len());
        for answer in self.ask(DOING, requests)? {
            match answer {
                Ok(Some(entry)) => entries.push(entry),
                Ok(None) => {
                    return Err(ConntrackError::Answer {
                        doing: DOING,
                        problem: "is missing",
                    });
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(ConntrackError::kernel(DOING, errno)),
            }
        }
        Ok(entries)
    }

    /// Removes the entries of these flows, as far as they are still there. Returns how many were.
    ///
    /// # Errors
    /// The kernel refused to remove one that was there; the others are removed.
    pub fn remove(&mut self, flows: &[Flow]) -> Result<usize> {
        const DOING: &str = "remove connection tracking entries";
        let requests = flows
            .iter()
            .map(|flow| Message::about(Kind::Delete, NLM_F_REQUEST, flow));
        self.ask_about(DOING, requests)
    }

    /// Lets TCP connections leave the windows that this kernel knows of, or no longer: those of a connection that it
    /// sees only one way of are wrong. Returns how many connections there are.
    ///
    /// Turning it off again breaks a connection of which this kernel has missed a segment meanwhile: what is outside of a
    /// window passes without moving it (`tcp_in_window`), so from then on both ways are outside for good.
    ///
    /// # Errors
    /// The kernel refused it for one of them.
    pub fn set_liberal(&mut self, flows: &[Flow], on: bool) -> Result<usize> {
        const DOING: &str = "relax the window checks of connections";
        let requests = flows
            .iter()
            .map(|flow| Message::liberal(NLM_F_REQUEST, flow, on));
        self.ask_about(DOING, requests)
    }

    /// Takes opening TCP connections for open: this kernel sees none of their answers, and would call all that the
    /// client says next invalid. Returns how many connections there are.
    ///
    /// # Errors
    /// The kernel refused it for one of them.
    pub fn assume_open(&mut self, entries: &[Entry]) -> Result<usize> {
        const DOING: &str = "take connections for open";
        let requests = entries
            .iter()
            .map(|entry| Message::assume_open(NLM_F_REQUEST, entry));
        self.ask_about(DOING, requests)
    }

    /// Asks for something about entries that need not be there any more; returns how many were.
    fn ask_about(
        &mut self,
        doing: &'static str,
        requests: impl Iterator<Item = Message>,
    ) -> Result<usize> {
        let mut there = 0;
        let mut refused = None;
        for answer in self.ask(doing, requests)? {
            match answer {
                Ok(_) => there += 1,
                Err(Errno::ENOENT) => {}
                Err(errno) => refused = Some(errno),
            }
        }
        match refused {
            None => Ok(there),
            Some(errno) => Err(ConntrackError::kernel(doing, errno)),
        }
    }

    fn ask_one(&mut self, doing: &'static str, request: Message) -> Result<Answer> {
        let answer = self.ask(doing, std::iter::once(request))?.pop();
        answer.ok_or(ConntrackError::Answer {
            doing,
            problem: "is missing",
        })
    }

    /// Sends requests; the answers are in their order.
    ///
    /// The kernel works a request off while it is being sent, and says nothing where it has nothing to say: when the
    /// socket is empty then, the rest went well.
    fn ask(
        &mut self,
        doing: &'static str,
        requests: impl Iterator<Item = Message>,
    ) -> Result<Vec<Answer>> {
        let mut requests = requests.peekable();
        let mut answers = Vec::new();
        while requests.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut bytes = Vec::new();
            let mut count = 0;
            for request in requests.by_ref().take(BATCH) {
                self.sequence = self.sequence.wrapping_add(1);
                bytes.extend_from_slice(&request.numbered(self.sequence));
                count += 1;
            }
            socket::send(&self.socket, &bytes)
                .map_err(|errno| ConntrackError::kernel(doing, errno))?;
            let mut batch: Vec<Answer> = vec![Ok(None); count];
            let mut more = true;
            while more {
                more = self.receive(doing, |sequence, answer| {
                    let place = usize::try_from(sequence.wrapping_sub(first)).ok();
                    let slot = place.and_then(|place| batch.get_mut(place));
                    let slot = slot.ok_or(ConntrackError::Answer {
                        doing,
                        problem: "is to another request",
                    })?;
                    *slot = match answer {
                        Ok(Some(payload)) => Ok(Some(parse(doing, payload)?)),
                        Ok(None) => Ok(None),
                        Err(errno) => Err(errno),
                    };
                    Ok(())
                })?;
            }
            answers.append(&mut batch);
        }
        Ok(answers)
    }

    /// Hands each message of the next datagram over: its number, and what it says. False if there is none.
    pub(super) fn receive(
        &mut self,
        doing: &'static str,
        mut take: impl FnMut(u32, Result<Option<&[u8]>, Errno>) -> Result<()>,
    ) -> Result<bool> {
        match socket::receive(&self.socket, &mut self.buffer) {
            Ok(()) => {}
            Err(Errno::EAGAIN) => return Ok(false),
            Err(errno) => return Err(ConntrackError::kernel(doing, errno)),
        }
        for message in socket::messages(&self.buffer) {
            let message = message.map_err(|_cut| garbled(doing))?;
            let payload = message.payload();
            let answer = match message.message_type() {
                NLMSG_ERROR | NLMSG_DONE => {
                    let code = payload.first_chunk().ok_or_else(|| garbled(doing))?;
                    match i32::from_ne_bytes(*code) {
                        0 => Ok(None),
                        code => Err(Errno::from_raw(code.saturating_neg())),
                    }
                }
                _ => Ok(Some(payload)),
            };
            take(message.sequence_number(), answer)?;
        }
        Ok(true)
    }
}

fn garbled(doing: &'static str) -> ConntrackError {
    ConntrackError::Answer {
        doing,
        problem: "is garbled",
    }
}

pub(super) fn parse(doing: &'static str, payload: &[u8]) -> Result<Entry> {
    message::parse(payload).ok_or_else(|| garbled(doing))
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").finish_non_exhaustive()
    }
}
