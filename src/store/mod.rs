//! Where frames live.
