//! The few parts of the protocol buffer encoding that pprof needs.

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// A number, left out if it is 0.
    pub(super) fn number(&mut self, field: u64, number: u64) {
        if number != 0 {
            self.varint(field << 3);
            self.varint(number);
        }
    }

    /// A string or an embedded message.
    pub(super) fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    /// An embedded message.
    pub(super) fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// Numbers, packed.
    pub(super) fn numbers(&mut self, field: u64, numbers: &[u64]) {
        let mut packed = Self::default();
        for number in numbers {
            packed.varint(*number);
        }
        self.message(field, &packed);
    }

    /// What was written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn varint(&mut self, mut number: u64) {
        loop {
            let [low, ..] = number.to_le_bytes();
            number >>= 7;
            if number == 0 {
                self.0.push(low & 0x7f);
                return;
            }
            self.0.push(low | 0x80);
        }
    }
}

/// A field that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// A number.
    Number(u64),
    /// A string, an embedded message or packed numbers.
    Bytes(&'a [u8]),
}

/// Reads the fields of a small message; damaged ones end it with `None`.
pub(super) fn fields(bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut fields = Vec::new();
    each_field(bytes, |number, field| {
        fields.push((number, field));
        Some(())
    })?;
    Some(fields)
}

/// Reads a message field by field; damaged ones end it with `None`, and so does `each`.
pub(super) fn each_field<'a>(
    mut bytes: &'a [u8],
    mut each: impl FnMut(u64, Field<'a>) -> Option<()>,
) -> Option<()> {
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => Field::Bytes(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                Field::Bytes(take(&mut bytes, length)?)
            }
            5 => Field::Bytes(take(&mut bytes, 4)?),
            _ => return None,
        };
        each(key >> 3, field)?;
    }
    Some(())
}

/// Each number of a repeated field, packed or single.
pub(super) fn each_number(field: Field<'_>, mut each: impl FnMut(u64) -> Option<()>) -> Option<()> {
    match field {
        Field::Number(number) => each(number),
        Field::Bytes(mut bytes) => {
            while !bytes.is_empty() {
                each(varint(&mut bytes)?)?;
            }
            Some(())
        }
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_they_were_written() {
        let mut message = Message::default();
        message.number(1, 300);
        message.number(2, 0);
        message.bytes(3, b"name");
        message.numbers(4, &[0, 127, 128, u64::MAX]);
        let bytes = message.into_bytes();
        let fields = fields(&bytes).unwrap();
        assert_eq!(fields[0], (1, Field::Number(300)));
        assert_eq!(fields[1], (3, Field::Bytes(b"name")));
        let mut numbers = Vec::new();
        each_number(fields[2].1, |number| {
            numbers.push(number);
            Some(())
        })
        .unwrap();
        assert_eq!(numbers, [0, 127, 128, u64::MAX]);
        for length in 1..bytes.len() {
            // Damaged or not, it ends.
            let _fields = super::fields(&bytes[..length]);
        }
    }
}
