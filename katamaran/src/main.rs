//! katamaran
fn main() {}
