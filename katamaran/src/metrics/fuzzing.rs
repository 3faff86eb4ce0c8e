//! The metrics file without a file, for the fuzz targets.

use super::decode::{Corrupt, decode};
use super::encode::encode;

/// A text read and written again.
///
/// # Errors
/// It is not one of ours.
pub fn again(text: &str) -> Result<String, Corrupt> {
    decode(text).map(|page| encode(&page))
}

/// What two runs have counted that both say `text`.
///
/// # Errors
/// It is not one of ours.
pub fn merged(text: &str) -> Result<String, Corrupt> {
    let mut page = decode(text)?;
    page.add(&page.clone());
    page.complete();
    Ok(encode(&page))
}
