//! TCP in bulk, with segmentation offload on everywhere: super-packets must survive the tunnel.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use katamaran::ebpf::{DestinationCounters, SourceCounters};

use crate::account::Account;
use crate::cutover::assert_balanced;
use crate::lab::{Lab, ROOMY, V4, V6};
use crate::mtu::Detour;
use crate::netns::wait_until;
use crate::require::require;

const BYTES: usize = 48 << 20;

#[test]
fn a_v4_bulk_stream_survives_the_flip_as_super_packets() {
    require!("a_v4_bulk_stream_survives_the_flip_as_super_packets");
    let (s, d) = stream_through_cutover(&Lab::new(ROOMY), V4, Detour::None);
    assert!(s.s3.packets > s.s3.skbs * 4, "no super-packets: {s:#?}");
    assert!(d.d1.packets > d.d1.skbs * 4, "no super-packets: {d:#?}");
}

#[test]
fn a_v6_bulk_stream_survives_the_flip_as_super_packets() {
    require!("a_v6_bulk_stream_survives_the_flip_as_super_packets");
    let (s, d) = stream_through_cutover(&Lab::new(ROOMY), V6, Detour::None);
    assert!(s.s3.packets > s.s3.skbs * 4, "no super-packets: {s:#?}");
    assert!(d.d1.packets > d.d1.skbs * 4, "no super-packets: {d:#?}");
}

/// Sends a known stream to V, flips and moves V in the middle, and compares what arrived.
pub(crate) fn stream_through_cutover(
    lab: &Lab,
    address: &str,
    detour: Detour,
) -> (SourceCounters, DestinationCounters) {
    let (mut source_spec, mut destination_spec) = (lab.source_spec(), lab.destination_spec());
    detour.prepare(lab, &mut source_spec, &mut destination_spec);
    let pump = lab.pump(&lab.a);
    let destination = lab.arm_destination(&destination_spec);
    let source = lab.arm_source(&source_spec);
    let mut delivered = Account::of_unread(&lab.b, &destination);
    let mut taken = Account::new(&lab.a, &source);

    let target = SocketAddr::new(address.parse().unwrap(), 7000);
    let listener = lab.vm.run(|| TcpListener::bind(target).unwrap());
    let received = Arc::new(AtomicUsize::new(0));
    let (progress, wrong) = (Arc::clone(&received), mpsc::channel());
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut buffer = vec![0; 1 << 16];
        let mut at = 0;
        while at < BYTES {
            let length = stream.read(&mut buffer).unwrap();
            assert_ne!(length, 0, "the stream ended after {at} bytes");
            if let Some(bad) = (0..length).find(|index| buffer[*index] != pattern(at + index)) {
                wrong.0.send(at + bad).unwrap();
                return;
            }
            at += length;
            progress.store(at, Ordering::Relaxed);
        }
        stream.write_all(b"!").unwrap();
    });
    let mut stream = lab.client.run(|| TcpStream::connect(target).unwrap());
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut writing = stream.try_clone().unwrap();
    let writer = thread::spawn(move || {
        let block: Vec<u8> = (0..BYTES).map(pattern).collect();
        writing.write_all(&block).unwrap();
    });

    wait_until("a third has arrived", || {
        received.load(Ordering::Relaxed) > BYTES / 3
    });
    source.flip().unwrap();
    taken.drain();
    drop(pump);
    let _pump = lab.pump(&lab.b);
    let mut end = [0];
    let answered = stream.read_exact(&mut end);
    let (s, d) = (source.counters().unwrap(), destination.counters().unwrap());
    answered.unwrap_or_else(|error| panic!("{error}: {s:#?} {d:#?}"));
    assert_eq!(wrong.1.try_recv().ok(), None, "wrong byte at this offset");
    reader.join().unwrap();
    writer.join().unwrap();
    drop(stream);

    wait_until("the last packets are counted", || {
        destination.counters().unwrap().d1.packets == source.counters().unwrap().s3.packets
    });
    delivered.drain();
    let (s, d) = (source.counters().unwrap(), destination.counters().unwrap());
    assert!(received.load(Ordering::Relaxed) == BYTES);
    assert_balanced(&s, &d);
    assert!(
        s.s3.bytes > (BYTES / 4) as u64,
        "most went through the tunnel: {s:#?}"
    );
    assert_eq!(source.drops().unwrap().unwrap(), []);
    assert_eq!(destination.drops().unwrap().unwrap(), []);
    lab.disarm(source, destination);
    (s, d)
}

fn pattern(at: usize) -> u8 {
    at.wrapping_mul(2_654_435_761).to_le_bytes()[2]
}
