//! Real migrations.
