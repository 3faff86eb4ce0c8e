//! V's packets behind a GRE header, of both families, as they are and as super-packets.

use katamaran::ebpf::Outer;

use crate::cutover::cut_over;
use crate::lab::{Lab, ROOMY, V4, V6};
use crate::mtu::{Detour, full_size_datagrams};
use crate::require::require;
use crate::stream::stream_through_cutover;

fn lab() -> Lab {
    Lab::new(ROOMY).through(Outer::Gre)
}

#[test]
fn a_flip_moves_traffic_of_both_families_through_gre() {
    require!("a_flip_moves_traffic_of_both_families_through_gre");
    cut_over(&lab(), V4);
    cut_over(&lab(), V6);
}

#[test]
fn full_size_packets_fit_through_gre() {
    require!("full_size_packets_fit_through_gre");
    full_size_datagrams(&lab(), V4, 1500 - 28, Detour::None);
    full_size_datagrams(&lab(), V6, 1500 - 48, Detour::None);
}

#[test]
fn bulk_streams_survive_the_flip_through_gre_as_super_packets() {
    require!("bulk_streams_survive_the_flip_through_gre_as_super_packets");
    for address in [V4, V6] {
        let (s, _) = stream_through_cutover(&lab(), address, Detour::None);
        assert!(s.s3.packets > s.s3.skbs * 4, "no super-packets: {s:#?}");
    }
}

/// 20 bytes of an outer header would fit, 24 do not.
#[test]
fn the_path_has_to_have_room_for_gre_as_well() {
    require!("the_path_has_to_have_room_for_gre_as_well");
    full_size_datagrams(&Lab::new(1520), V4, 1500 - 28, Detour::None);
    let lab = Lab::new(1520).through(Outer::Gre);
    full_size_datagrams(&lab, V4, 1500 - 28 - 4, Detour::None);
}
