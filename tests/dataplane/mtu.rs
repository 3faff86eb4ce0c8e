//! Full-size packets that must not be fragmented, on paths with and without room for outer headers.

use katamaran::ebpf::{Encap, Ingress};

use crate::account::Account;
use crate::cutover::assert_balanced;
use crate::lab::{Lab, ROOMY, V4, V6};
use crate::netns::wait_until;
use crate::require::require;
use crate::stream::stream_through_cutover;
use crate::traffic::{Receiver, Sender};

/// No room for an outer header beside a full-size packet.
const TIGHT: u32 = 1500;

#[test]
fn full_size_v4_packets_fit_a_roomy_path() {
    require!("full_size_v4_packets_fit_a_roomy_path");
    full_size_datagrams(&Lab::new(ROOMY), V4, 1500 - 28, Detour::None);
}

#[test]
fn full_size_v6_packets_fit_a_roomy_path() {
    require!("full_size_v6_packets_fit_a_roomy_path");
    full_size_datagrams(&Lab::new(ROOMY), V6, 1500 - 48, Detour::None);
}

#[test]
fn full_size_packets_take_the_tunnel_device_on_a_tight_path() {
    require!("full_size_packets_take_the_tunnel_device_on_a_tight_path");
    full_size_datagrams(&Lab::new(TIGHT), V4, 1500 - 28, Detour::Vxlan);
}

#[test]
fn a_stream_gets_through_a_tight_path() {
    require!("a_stream_gets_through_a_tight_path");
    let lab = Lab::new(TIGHT);
    let (s, _) = stream_through_cutover(&lab, V4, Detour::Vxlan);
    assert!(s.s3.packets > s.s3.skbs * 4, "no super-packets: {s:#?}");
}

#[test]
fn without_a_tunnel_device_what_does_not_fit_is_passed_and_counted() {
    require!("without_a_tunnel_device_what_does_not_fit_is_passed_and_counted");
    let lab = Lab::new(TIGHT);
    let _pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, V4);
    let source = lab.arm_source(&lab.source_spec());
    sender.send(1, 100);
    wait_until("V answers", || receiver.received() == 1);
    source.flip().unwrap();
    sender.send(10, 1500 - 28);
    wait_until("they are passed", || receiver.received() == 11);
    let s = source.counters().unwrap();
    assert_eq!((s.s1.packets, s.s2.packets, s.s3.packets), (11, 11, 0));
    assert_eq!(s.too_big.packets, 10);
    lab.a.netns.run(|| source.remove()).unwrap();
}

/// Whether there is a tunnel device for what does not fit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detour {
    None,
    Vxlan,
}

impl Detour {
    /// Makes the devices and names them in the specs.
    pub(crate) fn prepare(
        self,
        lab: &Lab,
        source: &mut katamaran::ebpf::SourceSpec,
        destination: &mut katamaran::ebpf::DestinationSpec,
    ) {
        if self == Self::None {
            return;
        }
        let (at_source, at_destination) = lab.vxlan();
        if let Encap::Ip {
            oversize_ifindex, ..
        } = &mut source.encap
        {
            *oversize_ifindex = Some(at_source);
        }
        destination.ingress.push(Ingress::Frames {
            ifindex: at_destination,
        });
    }
}

pub(crate) fn full_size_datagrams(lab: &Lab, address: &str, size: usize, detour: Detour) {
    let (mut source_spec, mut destination_spec) = (lab.source_spec(), lab.destination_spec());
    detour.prepare(lab, &mut source_spec, &mut destination_spec);
    let pump = lab.pump(&lab.a);
    let receiver = Receiver::new(&lab.vm);
    let mut sender = Sender::new(&lab.client, address);
    sender.forbid_fragments();
    let destination = lab.arm_destination(&destination_spec);
    let source = lab.arm_source(&source_spec);
    let mut taken = Account::new(&lab.a, &source);
    sender.send(1, size);
    wait_until("V answers", || receiver.received() == 1);
    sender.send(49, size);
    wait_until("all arrive before the flip", || receiver.received() == 50);
    source.flip().unwrap();
    taken.drain();
    drop(pump);
    let _pump = lab.pump(&lab.b);
    sender.send(200, size);
    wait_until("all arrive", || receiver.received() == 250);
    receiver.assert_all_once(250);
    let (s, d) = (source.counters().unwrap(), destination.counters().unwrap());
    assert_balanced(&s, &d);
    assert_eq!(s.s3.packets, 200);
    assert_eq!(source.drops().unwrap().unwrap(), []);
    assert_eq!(destination.drops().unwrap().unwrap(), []);
    lab.disarm(source, destination);
}
