//! How many packets an skb becomes on the wire, and how many bytes those have.

use crate::layout::Count;

/// Packets on the wire of one skb.
///
/// `gso_segs` is the kernel's own count; it is 0 after a program changed the packet's room and for
/// super-packets from a guest, and then the size of the L4 payload and the segment size tell.
#[must_use]
#[inline(always)]
pub fn wire_segments(gso_segs: u32, gso_size: u32, l4_payload: u32) -> u32 {
    if gso_size == 0 {
        return 1;
    }
    if gso_segs != 0 {
        return gso_segs;
    }
    // BPF has no 0-divisor trap to fear: gso_size is not 0 here.
    let segments = l4_payload.wrapping_add(gso_size - 1) / gso_size;
    if segments == 0 { 1 } else { segments }
}

/// What one skb counts for.
///
/// `ip_length` is the length of the IP packet in the skb, `headers` the length of the IP and L4
/// headers that each segment repeats.
#[must_use]
#[inline(always)]
pub fn count_of(segments: u32, ip_length: u32, headers: u32) -> Count {
    let repeated = (segments.wrapping_sub(1) as u64).wrapping_mul(headers as u64);
    Count {
        skbs: 1,
        packets: segments as u64,
        bytes: (ip_length as u64).wrapping_add(repeated),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_packets_are_one_segment() {
        assert_eq!(wire_segments(0, 0, 1460), 1);
        assert_eq!(wire_segments(1, 0, 0), 1);
    }

    #[test]
    fn the_kernels_count_is_believed() {
        assert_eq!(wire_segments(7, 1448, 1448 * 3), 7);
    }

    #[test]
    fn a_missing_count_is_made_up_for() {
        assert_eq!(wire_segments(0, 1448, 1448 * 3), 3);
        assert_eq!(wire_segments(0, 1448, 1448 * 3 + 1), 4);
        assert_eq!(wire_segments(0, 1448, 1), 1);
        assert_eq!(wire_segments(0, 1448, 0), 1);
    }

    #[test]
    fn bytes_include_the_repeated_headers() {
        let whole = count_of(3, 40 + 3000, 40);
        assert_eq!(
            whole,
            Count {
                skbs: 1,
                packets: 3,
                bytes: 3 * 1040
            }
        );
    }
}
