//! What people look at: the demo, the comparison, the soak.
//!
//! All of them play the same [`scene`], take their figures from [`figures`], and print plain text that fits
//! 80 columns.
//!
//! | figure | what it is |
//! |---|---|
//! | gap | the longest time around the cutover, from 1 s before V's STOP to 1 s after it, in which the client had something outstanding and got no answer |
//! | calm | the same, over as long a time before the migration: what the machine does by itself |
//! | downtime | STOP to RESUME, by QEMU's own events |
//! | stall | the longest time around the cutover in which one of V's disks acknowledged nothing to V, as the client hears of it |
//! | write | V's longest write by V's own clock, which stands still while V is stopped |
//! | blackout | the flip of the redirect to the release of what was held, by katamaran's report |

mod ablations;
mod cancel;
mod compare;
mod connections_bench;
mod crowd;
mod cutover;
mod demo;
mod disk_soak;
mod disks;
mod elsewhere;
mod faults;
mod figures;
mod live;
mod matrix;
mod mirror_bench;
mod other_kernel;
mod program_bench;
mod redirect_bench;
mod scene;
mod screen;
mod shuttle;
mod soak;
mod spread;
mod table;

pub use self::ablations::AblationArguments;
pub use self::cancel::{CancelOptions, cancel_soak};
pub use self::connections_bench::{ConnectionsBenchOptions, connections_bench};
pub use self::crowd::{CrowdOptions, crowd};
pub use self::demo::demo;
pub use self::faults::{FaultOptions, fault_matrix};
pub use self::matrix::MatrixArguments;
pub use self::mirror_bench::{MirrorBenchOptions, mirror_bench};
pub use self::other_kernel::OtherKernel;
pub use self::redirect_bench::{RedirectBenchOptions, redirect_bench};
pub use self::scene::{Scene, SceneDisks};
pub use self::screen::Screen;
pub use self::shuttle::{ShuttleOptions, shuttle};
pub use self::soak::{SoakOptions, soak};
