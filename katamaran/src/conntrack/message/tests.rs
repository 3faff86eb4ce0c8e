//! What is written is what the kernel reads, and the other way round.

use super::super::entry::tests::service;
use super::*;

fn payload(message: Message) -> Vec<u8> {
    message.numbered(1)[HEADER..].to_vec()
}

fn attributes(payload: &[u8]) -> Attributes<'_> {
    Attributes(&payload[FAMILY_HEADER..])
}

#[test]
fn a_message_says_its_length_kind_and_number() {
    let bytes = Message::create(0x601, &service(), None).numbered(0x0102_0304);
    assert_eq!(
        bytes[..4],
        u32::try_from(bytes.len()).unwrap().to_ne_bytes()
    );
    assert_eq!(bytes[4..6], 0x100_u16.to_ne_bytes());
    assert_eq!(bytes[6..8], 0x601_u16.to_ne_bytes());
    assert_eq!(bytes[8..12], 0x0102_0304_u32.to_ne_bytes());
    assert_eq!(bytes[16], 2, "AF_INET");
}

#[test]
fn a_translated_entry_is_created_from_an_untranslated_reply_and_the_translation() {
    let entry = service();
    let bytes = payload(Message::create(0, &entry, None));
    let parsed = parse(&bytes).unwrap();
    assert_eq!(parsed.original, entry.original);
    assert_eq!(parsed.reply, entry.untranslated_reply());
    let attributes = attributes(&bytes);
    let range = attributes.nested(CTA_NAT_DST).unwrap();
    assert_eq!(range.bytes(CTA_NAT_V4[0]), Some([10, 244, 0, 5]));
    assert_eq!(range.bytes(CTA_NAT_V4[1]), Some([10, 244, 0, 5]));
    let ports = range.nested(CTA_NAT_PROTO).unwrap();
    assert_eq!(ports.be16(CTA_PROTONAT_PORTS[0]), Some(8080));
    assert!(attributes.get(CTA_NAT_SRC).is_none());
    // The kernel sets these itself, and refuses to be told.
    assert_eq!(parsed.status & (status::SRC_NAT | status::DST_NAT), 0);
}

#[test]
fn everything_but_the_translation_survives_a_round_trip() {
    let v6 = |last: u16| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
    let mut entry = service().behind_translation();
    entry.original.source = v6(1);
    entry.original.destination = v6(2);
    entry.original.zone = Some(5);
    entry.reply = entry.untranslated_reply();
    entry.labels = Some([9; 16]);
    entry.mark = 77;
    entry.shifts[0] = Some(SequenceShift {
        position: 1,
        before: 2,
        after: 3,
    });
    entry.syn_proxy = Some(SynProxy {
        initial_sequence: 1,
        initial_timestamp: 2,
        timestamp_offset: 3,
    });
    entry.tcp = Some(Tcp {
        state: 3,
        scale: [7, 8],
        flags: [0x08 | 0x01, 0x08 | 0x02],
    });
    entry.helper = Some("ftp".into());
    let parsed = parse(&payload(Message::create(
        0,
        &entry,
        entry.helper.as_deref(),
    )));
    assert_eq!(parsed.unwrap(), entry);
}

#[test]
fn an_echo_and_sctp_survive_a_round_trip() {
    let mut entry = service().behind_translation();
    entry.tcp = None;
    (entry.original.protocol, entry.reply.protocol) = (1, 1);
    entry.original.transport = Transport::Icmp {
        id: 3,
        kind: 8,
        code: 0,
    };
    entry.reply.transport = Transport::Icmp {
        id: 3,
        kind: 0,
        code: 0,
    };
    entry.zone = 9;
    assert_eq!(
        parse(&payload(Message::create(0, &entry, None))).unwrap(),
        entry
    );
    let mut entry = service().behind_translation();
    entry.tcp = None;
    (entry.original.protocol, entry.reply.protocol) = (132, 132);
    entry.sctp = Some(Sctp {
        state: 4,
        tags: [1, u32::MAX],
    });
    assert_eq!(
        parse(&payload(Message::create(0, &entry, None))).unwrap(),
        entry
    );
}

#[test]
fn what_the_kernel_knew_of_the_windows_is_not_claimed() {
    let mut entry = service();
    // 0x10: data is not acknowledged; 0x20: the highest acknowledgement is known; 0x40: a challenge is expected.
    entry.tcp = Some(Tcp {
        state: 3,
        scale: [7, 7],
        flags: [0x33, 0xff],
    });
    let bytes = payload(Message::create(0, &entry, None));
    assert_eq!(parse(&bytes).unwrap().tcp.unwrap().flags, [0x0b, 0x0f]);
    // An update has to clear what was known of another time.
    let bytes = payload(Message::update(0, &entry, &entry));
    let info = attributes(&bytes).nested(CTA_PROTOINFO).unwrap();
    let tcp = info.nested(CTA_PROTOINFO_TCP).unwrap();
    assert_eq!(tcp.bytes(CTA_PROTOINFO_TCP_FLAGS[0]), Some([0x0b, 0xff]));
}

#[test]
fn cut_entries_are_refused_without_panic() {
    let bytes = payload(Message::create(0, &service(), None));
    for length in 0..bytes.len() {
        assert!(parse(&bytes[..length]).is_none_or(|e| e.original == service().original));
    }
}

#[test]
fn a_helper_of_a_name_that_no_kernel_can_have_is_left_out() {
    let mut entry = service();
    for (name, possible) in [
        ("ftp".to_owned(), true),
        ("fifteen-letters".to_owned(), true),
        ("sixteen--letters".to_owned(), false),
        ("f\0p".to_owned(), false),
        ("x".repeat(1 << 17), false),
    ] {
        entry.helper = Some(name);
        let message = payload(Message::create(0, &entry, entry.possible_helper()));
        assert_eq!(attributes(&message).get(CTA_HELP).is_some(), possible);
    }
}
