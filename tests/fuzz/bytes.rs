//! Bytes as decisions, and as what is decided about.

/// What is left of the bytes. When there are none any more, everything is zero.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below `end`, which is none of zero.
    pub fn below(&mut self, end: usize) -> usize {
        let [low, high] = [self.byte(), if end > 256 { self.byte() } else { 0 }];
        usize::from(u16::from_le_bytes([low, high])) % end
    }

    /// So many bytes, or what there are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// A run of bytes with its length before it.
    pub fn run(&mut self) -> &'a [u8] {
        let length = self.byte().into();
        self.take(length)
    }
}

/// What has to be so of every refusal: a line, and not a long one, as it leaves the program.
pub fn told(message: &str) {
    let line = restage::platform::console::clean(message);
    assert!(!line.is_empty(), "a refusal without a word");
    assert!(!line.chars().any(char::is_control), "{line:?}");
    assert!(
        line.len() <= 16_000,
        "{} bytes: {}…",
        line.len(),
        &message.chars().take(80).collect::<String>()
    );
}
