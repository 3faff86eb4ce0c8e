//! What is found through a process that holds taps.

use std::process::{Command, Stdio};

use katamaran::discover::{self, DiscoverError};

use crate::support::{Holder, Net, TAP, Tap, require_root};

#[test]
fn the_tap_of_a_process_is_found_with_its_own_namespace() {
    require_root!();
    let net = Net::new();
    // The child is in the test's namespace, the tap in another: the tap's is what counts.
    let holder = Tap::new(&net).hand_over();
    let found = discover::tap(holder.pid(), None).unwrap();
    assert_eq!(found.name, TAP);
    assert_eq!(found.descriptors, [0]);
    assert_eq!(found.netns.inode(), net.netns.inode());
    assert!(!found.vhost);
}

#[test]
fn a_multi_queue_tap_is_one_tap_with_a_descriptor_for_each_queue() {
    require_root!();
    let net = Net::new();
    let holder = Tap::with(&net, 2, 12).hand_over();
    assert_eq!(
        discover::tap(holder.pid(), None).unwrap().descriptors,
        [0, 1]
    );
}

#[test]
fn two_taps_need_the_users_word() {
    require_root!();
    let (one, two) = (Net::new(), Net::new());
    let mut first = Tap::new(&one);
    two.ip("link set lo down");
    let mut second = Tap::new(&two);
    two.ip("link set tap0 down");
    two.ip("link set tap0 name tap1");
    let child = Command::new("sleep")
        .arg("600")
        .stdin(Stdio::from(first.files.remove(0)))
        .stdout(Stdio::from(second.files.remove(0)))
        .spawn()
        .unwrap();
    let holder = Holder::of(child);
    let error = discover::tap(holder.pid(), None).unwrap_err();
    assert!(
        matches!(&error, DiscoverError::SeveralTaps { candidates, .. } if *candidates == ["tap0", "tap1"]),
        "{error:?}"
    );
    let chosen = discover::tap(holder.pid(), Some("tap1")).unwrap();
    assert_eq!(
        (chosen.descriptors.as_slice(), chosen.netns),
        ([1].as_slice(), two.netns)
    );
}

#[test]
fn a_process_without_a_tap_says_so() {
    require_root!();
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    let holder = Holder::of(child);
    let error = discover::tap(holder.pid(), None).unwrap_err();
    assert!(error.to_string().contains("--tap"), "{error}");
}
