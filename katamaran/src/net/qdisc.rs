//! The root queueing discipline of a device: its counters, and what it takes to make it again.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption, TcStats2};
use nix::errno::Errno;

use super::handle::Operation;
pub use super::plug::PlugQdisc;
use super::{NetError, Netlink, Result};

pub(super) const TCA_OPTIONS: u16 = 2;

/// Counters of a queueing discipline. The kernel keeps those but `bytes` in 32 bits: they wrap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QdiscStats {
    /// Its kind, for example `noqueue`.
    pub kind: String,
    /// The major number of its handle; 0 for one that the kernel made by default.
    pub major: u16,
    /// Packets that left it.
    pub packets: u32,
    /// Bytes that left it.
    pub bytes: u64,
    /// Packets it dropped.
    pub drops: u32,
    /// Packets it holds.
    pub qlen: u32,
    /// Bytes it holds.
    pub backlog: u32,
}

impl Netlink {
    /// The root queueing discipline of a device and its counters. A `mq` gives the sum of its queues.
    ///
    /// # Errors
    /// The device is gone, or has none (it is down).
    pub async fn root_qdisc(&self, link: u32) -> Result<QdiscStats> {
        self.root_message(link).await.map(|message| stats(&message))
    }

    pub(super) async fn root_message(&self, link: u32) -> Result<TcMessage> {
        let operation = Operation::new("read the root queueing discipline of device", link);
        let query = root(&operation, link, TcHandle::UNSPEC)?;
        match self
            .get(&operation, RouteNetlinkMessage::GetQueueDiscipline(query))
            .await
        {
            Ok(RouteNetlinkMessage::NewQueueDiscipline(message)) => Ok(message),
            Ok(_) => Err(operation.incomplete("a queueing discipline")),
            // The built-in "noop" of a device that is down is not shown.
            Err(NetError::Kernel {
                errno: Errno::EINVAL,
                ..
            }) => Err(NetError::Missing {
                what: "queueing discipline on device",
                object: link.to_string(),
            }),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn root(operation: &Operation, link: u32, handle: TcHandle) -> Result<TcMessage> {
    let index = i32::try_from(link).map_err(|_too_big| operation.error(Errno::ENODEV))?;
    let mut message = TcMessage::with_index(index);
    message.header.parent = TcHandle::ROOT;
    message.header.handle = handle;
    Ok(message)
}

/// What it takes to make a queueing discipline again: its kind, handle and options, without the
/// counters. The library wraps options that it does not know into an attribute of their own.
pub(super) fn recipe(mut message: TcMessage) -> TcMessage {
    message.header.info = 0;
    message.attributes = message
        .attributes
        .into_iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Kind(_) => Some(attribute),
            TcAttribute::Options(mut options) => match options.pop() {
                None => None,
                Some(TcOption::Other(raw)) if options.is_empty() => Some(TcAttribute::Other(raw)),
                Some(last) => {
                    options.push(last);
                    Some(TcAttribute::Options(options))
                }
            },
            _ => None,
        })
        .collect();
    message
}

pub(super) fn stats(message: &TcMessage) -> QdiscStats {
    let mut stats = QdiscStats {
        kind: String::new(),
        major: message.header.handle.major,
        packets: 0,
        bytes: 0,
        drops: 0,
        qlen: 0,
        backlog: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => stats.kind.clone_from(kind),
            TcAttribute::Stats2(parts) => {
                for part in parts {
                    match part {
                        TcStats2::Basic(basic) => {
                            stats.packets = basic.packets;
                            stats.bytes = basic.bytes;
                        }
                        TcStats2::Queue(queue) => {
                            stats.drops = queue.drops;
                            stats.qlen = queue.qlen;
                            stats.backlog = queue.backlog;
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    stats
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;

    use super::*;

    #[test]
    fn a_qdisc_can_be_made_again_from_what_the_kernel_showed() {
        let raw = DefaultNla::new(TCA_OPTIONS, vec![1, 2, 3, 4]);
        let mut shown = TcMessage::with_index(3);
        shown.header.handle = TcHandle { major: 1, minor: 0 };
        shown.header.info = 2;
        shown.attributes = vec![
            TcAttribute::Kind("pfifo".to_owned()),
            TcAttribute::Options(vec![TcOption::Other(raw.clone())]),
            TcAttribute::Stats2(vec![]),
        ];
        let again = recipe(shown);
        assert_eq!(again.header.info, 0);
        assert_eq!(again.header.handle.major, 1);
        assert_eq!(
            again.attributes,
            [
                TcAttribute::Kind("pfifo".to_owned()),
                TcAttribute::Other(raw)
            ]
        );
    }
}
