//! All entries of a table, or those of some addresses, and how many there are.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};

use super::entry::{Entry, status};
use super::message::{self, Kind, Message};
use super::table::{Result, parse};
use super::{ConntrackError, Table, socket};

const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const CTA_STATS_GLOBAL_MAX_ENTRIES: u16 = 2;

/// Whose entries to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
    Both,
}

/// Some of a table's entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The assured ones first.
    pub entries: Vec<Entry>,
    /// So many more there are.
    pub beyond: usize,
}

/// How full a table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    pub used: u32,
    /// Absent where the kernel does not tell (before 4.18).
    pub most: Option<u32>,
}

/// As many entries as are wanted. What is not assured gives way: it is young, unanswered, or of nobody.
#[derive(Debug)]
struct Kept {
    assured: Vec<Entry>,
    others: Vec<Entry>,
    most: usize,
    beyond: usize,
}

impl Table {
    /// All entries of a family.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the caller not the right to use it.
    pub fn list(&mut self, family: Family) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        self.walk(family, |doing, payload| {
            entries.push(parse(doing, payload)?);
            Ok(())
        })?;
        Ok(entries)
    }

    /// The entries of a family that concern one of these addresses, but not more than `most` of them.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the caller not the right to use it.
    pub fn list_of(
        &mut self,
        family: Family,
        addresses: &[IpAddr],
        most: usize,
    ) -> Result<Listing> {
        let mut kept = Kept {
            assured: Vec::new(),
            others: Vec::new(),
            most,
            beyond: 0,
        };
        self.walk(family, |doing, payload| {
            if message::concerns(payload, addresses) {
                kept.add(parse(doing, payload)?);
            }
            Ok(())
        })?;
        Ok(kept.listing())
    }

    fn walk(
        &mut self,
        family: Family,
        mut take: impl FnMut(&'static str, &[u8]) -> Result<()>,
    ) -> Result<()> {
        const DOING: &str = "list connection tracking entries";
        let family = match family {
            Family::V4 => nix::libc::AF_INET,
            Family::V6 => nix::libc::AF_INET6,
            Family::Both => nix::libc::AF_UNSPEC,
        };
        let family = u8::try_from(family).expect("address families are small numbers");
        self.sequence = self.sequence.wrapping_add(1);
        let request =
            Message::of_all(Kind::Get, NLM_F_REQUEST | NLM_F_DUMP, family).numbered(self.sequence);
        socket::send(&self.socket, &request)
            .map_err(|errno| ConntrackError::kernel(DOING, errno))?;
        let mut done = false;
        while !done {
            let more = self.receive(DOING, |_, answer| {
                match answer {
                    Ok(Some(payload)) => take(DOING, payload)?,
                    Ok(None) => done = true,
                    Err(errno) => return Err(ConntrackError::kernel(DOING, errno)),
                }
                Ok(())
            })?;
            if !more {
                return Err(ConntrackError::Answer {
                    doing: DOING,
                    problem: "has no end",
                });
            }
        }
        Ok(())
    }

    /// How full the table is.
    ///
    /// # Errors
    /// The kernel has no ctnetlink, or the caller not the right to use it.
    pub fn fill(&mut self) -> Result<Fill> {
        const DOING: &str = "ask how full the table of connections is";
        self.sequence = self.sequence.wrapping_add(1);
        let request = Message::of_all(Kind::Stats, NLM_F_REQUEST, 0).numbered(self.sequence);
        socket::send(&self.socket, &request)
            .map_err(|errno| ConntrackError::kernel(DOING, errno))?;
        let mut fill = None;
        self.receive(DOING, |_, answer| {
            match answer {
                Ok(payload) => fill = payload.and_then(Fill::parse),
                Err(errno) => return Err(ConntrackError::kernel(DOING, errno)),
            }
            Ok(())
        })?;
        fill.ok_or(ConntrackError::Answer {
            doing: DOING,
            problem: "is missing",
        })
    }
}

impl Fill {
    fn parse(payload: &[u8]) -> Option<Self> {
        let attributes = message::attributes(payload)?;
        Some(Self {
            used: attributes.be32(CTA_STATS_GLOBAL_ENTRIES)?,
            most: attributes.be32(CTA_STATS_GLOBAL_MAX_ENTRIES),
        })
    }
}

impl Kept {
    fn add(&mut self, entry: Entry) {
        let assured = entry.status & status::ASSURED != 0;
        if self.assured.len() + self.others.len() == self.most {
            self.beyond += 1;
            if !assured || self.others.pop().is_none() {
                return;
            }
        }
        match assured {
            true => self.assured.push(entry),
            false => self.others.push(entry),
        }
    }

    fn listing(mut self) -> Listing {
        self.assured.append(&mut self.others);
        Listing {
            entries: self.assured,
            beyond: self.beyond,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::service;
    use super::*;

    #[test]
    fn what_is_assured_is_kept_first_and_the_rest_is_counted() {
        let mut kept = Kept {
            assured: Vec::new(),
            others: Vec::new(),
            most: 3,
            beyond: 0,
        };
        let mut young = service();
        young.status &= !status::ASSURED;
        for assured in [false, true, false, true, false, true, true] {
            kept.add(if assured { service() } else { young.clone() });
        }
        let listing = kept.listing();
        assert_eq!(listing.entries, [service(), service(), service()]);
        assert_eq!(listing.beyond, 4);
    }
}
