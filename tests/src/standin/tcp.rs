//! TCP, as much of it as an echo on a network that loses nothing takes (RFC 9293).
//!
//! There is no clock: what is lost on the way to the guest is sent again by its peer, and what is lost on the way
//! back once the peer has acknowledged the byte before it three times (RFC 5681, 3.2). A last segment that is lost stays lost, and the
//! connection is then broken for whoever waits for it. Nothing is negotiated but the segments' size.

use std::collections::VecDeque;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::ip::{Packet, TCP, u16_at, u32_at};
use crate::lab::ECHO_PORT;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CHECKSUM: usize = 16;
/// Without window scaling there can't be more (RFC 7323).
const WINDOW: usize = 65_535;
/// A segment that acknowledges nothing new is the sign of a gap when it has come this often.
const DUPLICATES: u8 = 3;

/// All connections; they move with the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Connections {
    open: Vec<Connection>,
    received_bytes: u64,
}

/// One that somebody has made to the echo port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Connection {
    peer: (IpAddr, u16),
    own: IpAddr,
    largest: usize,
    /// What the peer sends next.
    receive_next: u32,
    peer_has_ended: bool,
    /// The first byte that the peer has not acknowledged, and with it that of `queue`.
    unacknowledged: u32,
    /// What we send next.
    send_next: u32,
    peer_window: usize,
    /// What is to be echoed: sent, and not acknowledged, then what is not sent yet.
    queue: VecDeque<u8>,
    ended: bool,
    duplicates: u8,
    window_told: usize,
}

/// A segment, read.
#[derive(Debug, Clone, Copy)]
struct Segment<'a> {
    from: u16,
    number: u32,
    acknowledged: u32,
    flags: u8,
    window: usize,
    options: &'a [u8],
    data: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(content: &'a [u8]) -> Option<Self> {
        let header = usize::from(content.get(12)? >> 4) * 4;
        (u16_at(content, 2)? == ECHO_PORT).then_some(Self {
            from: u16_at(content, 0)?,
            number: u32_at(content, 4)?,
            acknowledged: u32_at(content, 8)?,
            flags: content[13],
            window: usize::from(u16_at(content, 14)?),
            options: content.get(20..header)?,
            data: content.get(header..)?,
        })
    }

    /// The longest segment that the peer takes.
    fn largest(&self) -> Option<usize> {
        let mut options = self.options;
        loop {
            options = match options {
                [1, rest @ ..] => rest,
                [2, 4, high, low, ..] => {
                    return Some(usize::from(u16::from_be_bytes([*high, *low])));
                }
                [2..=255, length, ..] => options.get(usize::from(*length).max(2)..)?,
                _ => return None,
            };
        }
    }
}

impl Connections {
    /// Bytes that were received in order.
    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    /// The packets that one is answered with; none for one that belongs to nothing.
    pub(super) fn receive(&mut self, packet: Packet<'_>, mtu: u16) -> Option<Vec<Vec<u8>>> {
        let segment = Segment::parse(packet.content)?;
        let peer = (packet.from, segment.from);
        let known = self
            .open
            .iter()
            .position(|one| one.peer == peer && one.own == packet.to);
        if segment.flags & RST != 0 {
            self.open.remove(known?);
            return Some(Vec::new());
        }
        if segment.flags & SYN != 0 && known.is_none() {
            let connection = Connection::accept(packet, &segment, mtu);
            let answer = connection.segment(SYN | ACK, connection.unacknowledged, &[]);
            self.open.push(connection);
            return Some(answer.into_iter().collect());
        }
        let at = known?;
        let connection = &mut self.open[at];
        let before = connection.receive_next;
        let answers = connection.receive(&segment);
        let taken = connection.receive_next.wrapping_sub(before);
        self.received_bytes += u64::from(taken) - u64::from(taken > 0 && connection.peer_has_ended);
        if connection.is_over() {
            self.open.remove(at);
        }
        Some(answers)
    }
}

impl Connection {
    fn accept(packet: Packet<'_>, segment: &Segment<'_>, mtu: u16) -> Self {
        let headers = if packet.to.is_ipv4() { 40 } else { 60 };
        let own = usize::from(mtu).saturating_sub(headers);
        // Any number does.
        let first = segment.number ^ 0x5555_5555;
        Self {
            peer: (packet.from, segment.from),
            own: packet.to,
            largest: own.min(segment.largest().unwrap_or(536)),
            receive_next: segment.number.wrapping_add(1),
            peer_has_ended: false,
            unacknowledged: first,
            send_next: first.wrapping_add(1),
            peer_window: segment.window,
            queue: VecDeque::new(),
            ended: false,
            duplicates: 0,
            window_told: WINDOW,
        }
    }

    /// Both sides have ended, and the peer knows it.
    fn is_over(&self) -> bool {
        self.ended && self.unacknowledged == self.send_next
    }

    fn receive(&mut self, segment: &Segment<'_>) -> Vec<Vec<u8>> {
        let mut answers = Vec::new();
        self.acknowledge(segment, &mut answers);
        let skip = self.receive_next.wrapping_sub(segment.number);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let has_end = segment.flags & FIN != 0;
        // What is there already is dropped from the front; what is ahead has to come again, in order.
        let fresh = segment.data.get(skip..).unwrap_or_default();
        let fresh = &fresh[..fresh.len().min(WINDOW.saturating_sub(self.queue.len()))];
        self.queue.extend(fresh);
        let length = u32::try_from(fresh.len()).unwrap_or(0);
        self.receive_next = self.receive_next.wrapping_add(length);
        let end = segment
            .number
            .wrapping_add(u32::try_from(segment.data.len()).unwrap_or(0));
        if has_end && !self.peer_has_ended && self.receive_next == end {
            self.peer_has_ended = true;
            self.receive_next = self.receive_next.wrapping_add(1);
        }
        let sent = answers.len();
        self.send(&mut answers);
        let says_something = !segment.data.is_empty() || segment.flags & (SYN | FIN) != 0;
        let window_opens = self.window_told < WINDOW / 2 && self.window() >= WINDOW / 2;
        if answers.len() == sent && (says_something || window_opens) {
            answers.extend(self.segment(ACK, self.send_next, &[]));
        }
        self.window_told = self.window();
        answers
    }

    /// What the peer has is forgotten; what it lacks is sent again.
    fn acknowledge(&mut self, segment: &Segment<'_>, answers: &mut Vec<Vec<u8>>) {
        let in_flight = self.send_next.wrapping_sub(self.unacknowledged);
        let news = segment.acknowledged.wrapping_sub(self.unacknowledged);
        if segment.flags & ACK == 0 || news > in_flight {
            return;
        }
        self.peer_window = segment.window;
        if news > 0 {
            // SYN and FIN have numbers, and no place in the queue.
            let bytes = usize::try_from(news).unwrap_or(0).min(self.queue.len());
            self.queue.drain(..bytes);
            self.unacknowledged = segment.acknowledged;
            self.duplicates = 0;
        } else if segment.data.is_empty() && in_flight > 0 && segment.flags & (SYN | FIN) == 0 {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == DUPLICATES {
                let first: Vec<u8> = self.queue.iter().take(self.largest).copied().collect();
                answers.extend(self.segment(ACK, self.unacknowledged, &first));
            }
        }
    }

    /// As much as the peer's window takes.
    fn send(&mut self, answers: &mut Vec<Vec<u8>>) {
        loop {
            let in_flight = self.send_next.wrapping_sub(self.unacknowledged);
            let in_flight = usize::try_from(in_flight).unwrap_or(usize::MAX);
            let room = self.peer_window.saturating_sub(in_flight);
            let next = self.queue.iter().skip(in_flight);
            let data: Vec<u8> = next.take(self.largest.min(room)).copied().collect();
            if data.is_empty() {
                break;
            }
            answers.extend(self.segment(ACK | PSH, self.send_next, &data));
            let length = u32::try_from(data.len()).unwrap_or(0);
            self.send_next = self.send_next.wrapping_add(length);
        }
        let all_sent = usize::try_from(self.send_next.wrapping_sub(self.unacknowledged))
            == Ok(self.queue.len());
        if self.peer_has_ended && !self.ended && all_sent {
            answers.extend(self.segment(ACK | FIN, self.send_next, &[]));
            self.send_next = self.send_next.wrapping_add(1);
            self.ended = true;
        }
    }

    fn window(&self) -> usize {
        WINDOW.saturating_sub(self.queue.len())
    }

    fn segment(&self, flags: u8, number: u32, data: &[u8]) -> Option<Vec<u8>> {
        let own = u16::try_from(self.largest)
            .unwrap_or(u16::MAX)
            .to_be_bytes();
        let options: &[u8] = match flags & SYN != 0 {
            true => &[2, 4, own[0], own[1]],
            false => &[],
        };
        let words = u8::try_from(5 + options.len() / 4).ok()?;
        let window = u16::try_from(self.window()).unwrap_or(u16::MAX);
        let content = [
            &ECHO_PORT.to_be_bytes()[..],
            &self.peer.1.to_be_bytes(),
            &number.to_be_bytes(),
            &self.receive_next.to_be_bytes(),
            &[words << 4, flags],
            &window.to_be_bytes(),
            &[0; 4],
            options,
            data,
        ]
        .concat();
        let packet = Packet {
            from: self.own,
            to: self.peer.0,
            protocol: TCP,
            content: &content,
        };
        packet.wire(CHECKSUM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 5));

    /// A peer that has said what comes back, in words.
    struct Peer {
        guest: Connections,
        number: u32,
        acknowledged: u32,
        window: u16,
        got: Vec<u8>,
    }

    impl Peer {
        fn connect(window: u16) -> Self {
            let mut peer = Self {
                guest: Connections::default(),
                number: 7,
                acknowledged: 0,
                window,
                got: Vec::new(),
            };
            let answers = peer.send(SYN, &[]);
            let [(flags, number, _)] = answers[..] else {
                panic!("{answers:?}");
            };
            assert_eq!(flags, SYN | ACK);
            peer.number += 1;
            peer.acknowledged = number + 1;
            assert_eq!(peer.send(ACK, &[]), []);
            peer
        }

        /// Sends one segment and returns flags, number and length of each answer.
        fn send(&mut self, flags: u8, data: &[u8]) -> Vec<(u8, u32, usize)> {
            let content = [
                &9_u16.to_be_bytes()[..],
                &ECHO_PORT.to_be_bytes(),
                &self.number.to_be_bytes(),
                &self.acknowledged.to_be_bytes(),
                &[5 << 4, flags],
                &self.window.to_be_bytes(),
                &[0; 4],
                data,
            ]
            .concat();
            let packet = Packet {
                from: PEER,
                to: OWN,
                protocol: TCP,
                content: &content,
            };
            let answers = self.guest.receive(packet, 1450).unwrap_or_default();
            let read = answers.iter().map(|answer| {
                let content = Packet::parse(answer).unwrap().content;
                let header = usize::from(content[12] >> 4) * 4;
                let number = u32_at(content, 4).unwrap();
                if number == self.acknowledged {
                    self.got.extend(&content[header..]);
                }
                (content[13], number, content.len() - header)
            });
            read.collect()
        }
    }

    #[test]
    fn bytes_come_back_within_the_peers_window_and_the_end_after_them() {
        let mut peer = Peer::connect(1000);
        let data: Vec<u8> = (0..1200_u32).map(|n| n.to_le_bytes()[0]).collect();
        let first = peer.acknowledged;
        // The peer's own largest segment is 536 bytes, for it has not said any other.
        let answers = peer.send(ACK, &data);
        assert_eq!(
            answers,
            [(ACK | PSH, first, 536), (ACK | PSH, first + 536, 464)]
        );
        peer.number += 1200;
        peer.acknowledged += 1000;
        assert_eq!(peer.send(ACK, &[]), [(ACK | PSH, first + 1000, 200)]);
        assert_eq!(peer.got[..536], data[..536]);
        assert_eq!(peer.got[536..], data[1000..]);
        let end = peer.send(ACK | FIN, &[]);
        assert_eq!(end, [(ACK | FIN, first + 1200, 0)]);
        peer.number += 1;
        peer.acknowledged = first + 1201;
        assert_eq!(peer.send(ACK, &[]), []);
        assert_eq!(
            (peer.guest.open.len(), peer.guest.received_bytes()),
            (0, 1200)
        );
    }

    #[test]
    fn what_is_ahead_of_a_gap_has_to_come_again_and_what_is_known_is_not_echoed_twice() {
        let mut peer = Peer::connect(1000);
        let first = peer.acknowledged;
        peer.number += 10;
        assert_eq!(peer.send(ACK, b"ahead"), [(ACK, first, 0)]);
        peer.number -= 10;
        assert_eq!(peer.send(ACK, b"0123456789"), [(ACK | PSH, first, 10)]);
        // The answer was lost: three times the same, and it comes again.
        assert_eq!(
            peer.send(ACK, b"0123456789ab"),
            [(ACK | PSH, first + 10, 2)]
        );
        for expected in [&[][..], &[], &[(ACK, first, 12)]] {
            assert_eq!(peer.send(ACK, &[]), expected);
        }
    }
}
