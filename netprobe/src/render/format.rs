//! What every format of a stream can do. A format is told of events one by one, and writes.

use std::io::{self, Write};

use crate::report::{Row, Summary};

/// A way to write a stream.
pub trait Format {
    /// Before the first event.
    fn begin(&mut self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// Whether an event becomes a line or part of a count; what does not is counted as filtered out.
    fn shows(&self, _row: &Row) -> bool {
        true
    }

    /// An event, also one that is not shown.
    fn row(&mut self, out: &mut dyn Write, row: &Row) -> io::Result<()>;

    /// Nothing came for a moment.
    fn idle(&mut self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }

    /// After the last event.
    fn end(&mut self, _out: &mut dyn Write, _summary: &Summary) -> io::Result<()> {
        Ok(())
    }
}
