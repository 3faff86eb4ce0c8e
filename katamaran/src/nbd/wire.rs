//! The numbers of the protocol. All are big-endian on the wire.

/// `NBDMAGIC`
pub(super) const SERVER_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const REPLY_MAGIC: u32 = 0x6744_6698;

/// Both sides: options are answered, whatever they are.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
/// Both sides: no padding after the handshake.
pub(super) const NO_ZEROES: u16 = 2;

pub(super) const OPTION_GO: u32 = 7;

pub(super) const REPLY_ACK: u32 = 1;
pub(super) const REPLY_INFO: u32 = 3;
/// Set in every reply that is an error.
pub(super) const REPLY_ERROR: u32 = 1 << 31;

/// The size and flags of the export.
pub(super) const INFO_EXPORT: u16 = 0;
/// Asked for, it tells the server that we keep to its block size.
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const COMMAND_READ: u16 = 0;
pub(super) const COMMAND_DISCONNECT: u16 = 2;

/// More than any reply to an option has; names and messages are 4096 bytes at most.
pub(super) const OPTION_REPLY_LIMIT: u32 = 64 << 10;
