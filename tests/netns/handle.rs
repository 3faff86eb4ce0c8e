//! Namespaces and the netlink handle.

use katamaran::net::{NetError, NetNs};

use crate::support::{Net, require_root, wait_until};

#[test]
fn work_runs_inside_and_the_caller_stays_outside() {
    require_root!();
    let before = NetNs::current().unwrap();
    let net = Net::new();
    let inside = net.netns.run(|| NetNs::current().unwrap()).unwrap();
    assert_eq!(inside, net.netns);
    assert_ne!(inside, before);
    assert_eq!(NetNs::current().unwrap(), before);
    assert_eq!(NetNs::open(net.path()).unwrap().inode(), net.netns.inode());
}

#[test]
fn a_panic_inside_reaches_the_caller() {
    require_root!();
    let net = Net::new();
    let caught = std::panic::catch_unwind(|| net.netns.run(|| panic!("inside")));
    assert!(caught.is_err());
}

#[tokio::test]
async fn a_handle_sees_its_own_namespace_only() {
    require_root!();
    let (a, b) = (Net::new(), Net::new());
    a.ip("link add only_a type veth peer name peer_a");
    let (in_a, in_b) = (a.netlink(), b.netlink());
    assert!(in_a.link_by_name("only_a").await.is_ok());
    let error = in_b.link_by_name("only_a").await.unwrap_err();
    assert!(error.already_gone(), "{error:?}");
    assert_eq!(in_b.links().await.unwrap().len(), 1, "lo alone");
}

#[tokio::test]
async fn requests_from_many_tasks_are_served_in_turn() {
    require_root!();
    let net = Net::new();
    let netlink = net.netlink();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let netlink = netlink.clone();
        tasks.spawn(async move { netlink.links().await.map(|links| links.len()) });
    }
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap().unwrap(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_handle_leaves_no_socket_and_no_task() {
    require_root!();
    let net = Net::new();
    let metrics = tokio::runtime::Handle::current().metrics();
    let tasks = metrics.num_alive_tasks();
    let netlink = net.netlink();
    let clone = netlink.clone();
    clone.links().await.unwrap();
    assert_eq!(net.netlink_sockets(), 1);
    netlink.close().await.unwrap();
    wait_until("the socket is closed", || net.netlink_sockets() == 0);
    wait_until("the connection's task ends", || {
        metrics.num_alive_tasks() == tasks
    });
    assert!(matches!(clone.links().await, Err(NetError::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_handle_leaves_no_socket_and_no_task() {
    require_root!();
    let net = Net::new();
    let metrics = tokio::runtime::Handle::current().metrics();
    let tasks = metrics.num_alive_tasks();
    for _ in 0..20 {
        net.netlink().links().await.unwrap();
    }
    wait_until("the sockets are closed", || net.netlink_sockets() == 0);
    wait_until("the tasks end", || metrics.num_alive_tasks() == tasks);
}
