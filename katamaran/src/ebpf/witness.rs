//! The kernel as witness: what the tracepoints need, and whether it is there.

use std::collections::HashMap;

use aya::Ebpf;
use aya::programs::RawTracePoint;
use katamaran_common::layout::KernelOffsets;
use katamaran_common::names;

use super::attach::Attachments;
use super::bpffs::PinDirectory;
use super::btf::{Btf, BtfError};
use super::error::EbpfError;
use super::object;

/// Why "offered" and the drops are unknown.
#[derive(Debug, thiserror::Error)]
pub enum WitnessMissing {
    /// The kernel does not describe the structures that the programs have to read.
    #[error("the kernel's structures are unknown")]
    Btf(#[from] BtfError),
    /// The kernel does not take the programs.
    #[error("the tracepoints can't be used")]
    Tracepoint(#[source] Box<EbpfError>),
}

/// What was learned from the kernel's description of itself.
#[derive(Debug)]
pub(super) struct Witness {
    pub(super) offsets: KernelOffsets,
    pub(super) reasons: DropReasons,
}

/// Names of drop reasons.
#[derive(Debug, Default)]
pub(super) struct DropReasons {
    core: HashMap<u32, String>,
    subsystems: HashMap<u32, String>,
}

/// The tracepoint programs, and where they go.
pub(super) const TRACEPOINTS: [(&str, &str); 2] = [
    (names::PROGRAM_XMIT, "net_dev_start_xmit"),
    (names::PROGRAM_DROP, "kfree_skb"),
];

/// `SKB_DROP_REASON_SUBSYS_SHIFT`
const SUBSYSTEM_SHIFT: u32 = 16;

impl DropReasons {
    /// How many have names.
    pub(super) fn count(&self) -> usize {
        self.core.len()
    }

    /// The name of a reason, without the kernel's prefix.
    pub(super) fn name(&self, reason: u32) -> String {
        let subsystem = reason >> SUBSYSTEM_SHIFT;
        if subsystem == 0 {
            return match self.core.get(&reason) {
                Some(name) => name.trim_start_matches("SKB_DROP_REASON_").to_owned(),
                None => format!("REASON_{reason}"),
            };
        }
        let number = reason & 0xffff;
        match self.subsystems.get(&subsystem) {
            Some(name) => {
                format!(
                    "{}_{number}",
                    name.trim_start_matches("SKB_DROP_REASON_SUBSYS_")
                )
            }
            None => format!("SUBSYSTEM_{subsystem}_{number}"),
        }
    }
}

impl Witness {
    pub(super) fn of_kernel() -> Result<Self, BtfError> {
        Self::from_btf(&Btf::of_kernel()?)
    }

    pub(super) fn from_btf(btf: &Btf) -> Result<Self, BtfError> {
        let offsets = KernelOffsets {
            skb_head: btf.offset("sk_buff", "head")?,
            skb_end: btf.offset("sk_buff", "end")?,
            skb_len: btf.offset("sk_buff", "len")?,
            skb_dev: btf.offset("sk_buff", "dev")?,
            skb_protocol: btf.offset("sk_buff", "protocol")?,
            skb_network_header: btf.offset("sk_buff", "network_header")?,
            shinfo_gso_size: btf.offset("skb_shared_info", "gso_size")?,
            shinfo_gso_segs: btf.offset("skb_shared_info", "gso_segs")?,
            dev_ifindex: btf.offset("net_device", "ifindex")?,
            dev_net: btf.offset("net_device", "nd_net.net")?,
            net_inum: btf.offset("net", "ns.inum")?,
            skb_data: btf.offset("sk_buff", "data")?,
            skb_mac_header: btf.offset("sk_buff", "mac_header")?,
        };
        let reasons = DropReasons {
            // Linux 5.17; without it the tracepoint has no reason to read.
            core: btf.enumerators("skb_drop_reason")?,
            // Linux 6.4; only names.
            subsystems: btf
                .enumerators("skb_drop_reason_subsys")
                .unwrap_or_default(),
        };
        Ok(Self { offsets, reasons })
    }

    /// Loads and attaches the tracepoint programs. The configuration must be in place.
    pub(super) fn attach(
        ebpf: &mut Ebpf,
        attachments: &mut Attachments,
        pins: &PinDirectory,
    ) -> Result<(), EbpfError> {
        for (program, tracepoint) in TRACEPOINTS {
            object::program::<RawTracePoint>(ebpf, program)?
                .load()
                .map_err(EbpfError::load(program))?;
            attachments.tracepoint(ebpf, program, tracepoint, pins.path())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_all_subsystems_have_names() {
        let reasons = DropReasons {
            core: HashMap::from([(5, "SKB_DROP_REASON_FULL_RING".to_owned())]),
            subsystems: HashMap::from([(3, "SKB_DROP_REASON_SUBSYS_OPENVSWITCH".to_owned())]),
        };
        assert_eq!(reasons.name(5), "FULL_RING");
        assert_eq!(reasons.name(6), "REASON_6");
        assert_eq!(reasons.name(0x3_0002), "OPENVSWITCH_2");
        assert_eq!(reasons.name(0x4_0002), "SUBSYSTEM_4_2");
    }
}
