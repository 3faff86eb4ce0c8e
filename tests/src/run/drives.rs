//! V's disk images on both nodes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::record::SIZE;
use super::records::{DriveResult, Expected};
use super::stage::Storage;
use crate::lab::Lab;

const BLOCK: u64 = SIZE as u64;
/// Beside the images, what a file system of their own has room for.
const ROOM: u64 = 1 << 20;

/// How V's disks are made, their size apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriveOptions {
    /// How many there are.
    pub count: usize,
    /// So many MiB at the end of each of A's images hold data from the start: something to mirror that
    /// V does not touch.
    pub filled_mib: u64,
    /// What B's images hold in the beginning.
    pub destination: Destination,
}

/// B's images before the migration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Destination {
    /// Nothing, and they are sparse.
    #[default]
    Sparse,
    /// Something else all over: a mirror need not wait for the file system to find room.
    Full,
}

impl Default for DriveOptions {
    fn default() -> Self {
        Self {
            count: 1,
            filled_mib: 0,
            destination: Destination::default(),
        }
    }
}

/// The images of A and of B, one pair per drive.
///
/// Each node has them on a file system in memory, with room for them and not much else: V's writes take as
/// long as QEMU takes, not the machine's disk, and the one of B can be filled.
pub(super) fn make(
    lab: &Lab,
    storage: Storage,
    options: DriveOptions,
) -> Result<Vec<[PathBuf; 2]>> {
    let count = options.count;
    let (mebibytes, shared) = match storage {
        Storage::Diskless => return Ok(Vec::new()),
        Storage::Local(mebibytes) => (mebibytes, false),
        Storage::Shared(mebibytes) => (mebibytes, true),
    };
    if options.filled_mib > mebibytes {
        bail!(
            "{} MiB of data on a disk of {mebibytes}",
            options.filled_mib
        );
    }
    let room = count as u64 * (mebibytes << 20) + ROOM;
    let place_a = lab.small_file_system("disks-a", room)?;
    let place_b = match shared {
        true => place_a.clone(),
        false => lab.small_file_system("disks-b", room)?,
    };
    (0..count as u64)
        .map(|drive| {
            let a = place_a.join(format!("disk-a{drive}.raw"));
            let file = make_image(&a, mebibytes)?;
            fill(&file, drive, filled(mebibytes, options.filled_mib))?;
            if shared {
                return Ok([a.clone(), a]);
            }
            let b = place_b.join(format!("disk-b{drive}.raw"));
            let file = make_image(&b, mebibytes)?;
            if options.destination == Destination::Full {
                // Not what A has there: were it left as it is, it would be noticed.
                fill(&file, drive + 100, filled(mebibytes, mebibytes))?;
            }
            Ok([a, b])
        })
        .collect()
}

/// The blocks at the end of a disk that hold data from the start.
fn filled(mebibytes: u64, filled_mib: u64) -> Range<u64> {
    let end = (mebibytes << 20) / BLOCK;
    end - (filled_mib << 20) / BLOCK..end
}

fn make_image(path: &Path, mebibytes: u64) -> Result<File> {
    let file = File::options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("create {}", path.display()))?;
    file.set_len(mebibytes << 20)
        .with_context(|| format!("size {}", path.display()))?;
    Ok(file)
}

fn fill(file: &File, drive: u64, blocks: Range<u64>) -> Result<()> {
    use std::io::{Seek, SeekFrom};
    let mut file = BufWriter::with_capacity(1 << 20, file);
    file.seek(SeekFrom::Start(blocks.start * BLOCK))
        .context("seek in an image")?;
    let mut bytes = vec![0; SIZE];
    for block in blocks {
        Expected::filler(drive, block).write_to(&mut bytes);
        file.write_all(&bytes).context("fill an image")?;
    }
    file.flush().context("fill an image")
}

/// Compares one image with what V was acknowledged: records 1 to `result.acknowledged`.
pub(super) fn compare(
    image: &Path,
    drive: u64,
    blocks: u64,
    filled_mib: u64,
    result: &mut DriveResult,
) -> Result<()> {
    let file = File::open(image).with_context(|| format!("open {}", image.display()))?;
    let length = file
        .metadata()
        .with_context(|| format!("stat {}", image.display()))?
        .len();
    let expected = Expected {
        drive,
        acknowledged: result.acknowledged,
        blocks: blocks.min(length / BLOCK),
        filled: filled(length >> 20, filled_mib),
    };
    let mut chunk = vec![0; 256 * SIZE];
    for start in (0..length).step_by(chunk.len()) {
        let part =
            usize::try_from(length - start).map_or(chunk.len(), |left| left.min(chunk.len()));
        file.read_exact_at(&mut chunk[..part], start)
            .with_context(|| format!("read {} at {start}", image.display()))?;
        for (block, bytes) in (start / BLOCK..).zip(chunk[..part].chunks_exact(SIZE)) {
            expected.check(block, bytes, result);
        }
    }
    Ok(())
}
