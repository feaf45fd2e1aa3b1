//! The profile that says sRGB, for files whose readers would otherwise have to assume it.

use std::sync::OnceLock;

use moxcms::{ColorDateTime, ColorProfile};

/// An ICC profile of sRGB, under a kilobyte. It says no time of its making.
pub(crate) fn srgb_icc() -> &'static [u8] {
    static PROFILE: OnceLock<Vec<u8>> = OnceLock::new();
    PROFILE.get_or_init(|| {
        let mut profile = ColorProfile::new_srgb();
        profile.creation_date_time =
            ColorDateTime { year: 2000, month: 1, day_of_the_month: 1, hours: 0, minutes: 0, seconds: 0 };
        profile.encode().expect("the profile is whole")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::colour::{Model, ToSrgb};

    #[test]
    fn the_profile_says_srgb_and_no_time() {
        assert!(ToSrgb::of_icc(srgb_icc(), Model::Rgb).unwrap().is_same());
        assert!(srgb_icc().len() < 1024, "{}", srgb_icc().len());
        assert_eq!(
            blake3::hash(srgb_icc()).to_string(),
            "911ee29c49d7a9b1dff98b1e5087b69c70de5110ec2bf875ab1053b81bdbc2fb"
        );
        // The header's date (ICC.1:2022, 7.2.9).
        assert_eq!(srgb_icc()[24..36], [0x07, 0xd0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    }
}
