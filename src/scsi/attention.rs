//! Unit attention conditions: at most one of each, reported most urgent first (SAM-5, unit attention conditions).

use super::sense::{
    INQUIRY_DATA_CHANGED, MEDIUM_MAY_HAVE_CHANGED, MODE_PARAMETERS_CHANGED, RESET_OCCURRED, Sense,
};

/// What the host must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attention {
    /// The unit is new to whoever hears of it.
    PowerOn,
    /// A reset of the transport.
    Reset,
    /// The unit became another kind of device.
    InquiryChanged,
    /// A medium was inserted.
    MediumChanged,
    /// Write protection was changed.
    ModeParametersChanged,
}

/// Most urgent first: SAM-5 puts resets above all else. What a medium change means depends on what the device is, so
/// that comes before it.
const PRECEDENCE: [Attention; 5] = [
    Attention::PowerOn,
    Attention::Reset,
    Attention::InquiryChanged,
    Attention::MediumChanged,
    Attention::ModeParametersChanged,
];

impl Attention {
    fn sense(self) -> Sense {
        match self {
            Self::PowerOn | Self::Reset => RESET_OCCURRED,
            Self::InquiryChanged => INQUIRY_DATA_CHANGED,
            Self::MediumChanged => MEDIUM_MAY_HAVE_CHANGED,
            Self::ModeParametersChanged => MODE_PARAMETERS_CHANGED,
        }
    }

    const fn mask(self) -> u8 {
        match self {
            Self::Reset => 1,
            Self::InquiryChanged => 2,
            Self::MediumChanged => 4,
            Self::ModeParametersChanged => 8,
            Self::PowerOn => 16,
        }
    }
}

/// The conditions that wait to be reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Attentions(u8);

impl Attentions {
    /// As bits that mean the same to every build with the same record.
    pub(super) fn bits(self) -> u8 {
        self.0
    }

    /// What [`Attentions::bits`] gave.
    pub(super) fn from_bits(bits: u8) -> Self {
        Self(PRECEDENCE.iter().fold(0, |known, attention| known | (bits & attention.mask())))
    }

    /// Establishes a condition; one that waits already is not repeated (SAM-5 lets them be merged).
    ///
    /// While power on waits, all else is part of it: whoever hears of it knows nothing of the unit yet. So a host that finds a
    /// drive with a medium in it has one attention to ask about, and not one for each thing that was done before it came.
    pub(super) fn raise(&mut self, attention: Attention) {
        if self.0 & Attention::PowerOn.mask() == 0 {
            self.0 |= attention.mask();
        }
    }

    /// Withdraws a condition that is no longer true.
    pub(super) fn withdraw(&mut self, attention: Attention) {
        self.0 &= !attention.mask();
    }

    /// Takes the most urgent condition.
    pub(super) fn take(&mut self) -> Option<Sense> {
        let next = PRECEDENCE.into_iter().find(|attention| self.0 & attention.mask() != 0)?;
        self.withdraw(next);
        Some(next.sense())
    }
}
