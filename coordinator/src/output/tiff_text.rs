//! The texts of a TIFF.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

use tiff::TiffError;
use tiff::decoder::Decoder;
use tiff::tags::Tag;

use super::xmp;

/// What a TIFF says of itself.
pub(crate) struct TiffText {
    /// As A1111 writes it, or whatever another program put into the description.
    pub(crate) parameters: Option<String>,
    /// The settings as JSON.
    pub(crate) settings: Option<String>,
}

impl TiffText {
    /// Of the decoder's current image.
    pub(crate) fn read<R: Read + Seek>(decoder: &mut Decoder<R>) -> Result<Self, TiffError> {
        let packet = decoder.find_tag(Tag::Unknown(700))?.and_then(|value| value.into_u8_vec().ok());
        let (described, settings) = packet.as_deref().map(xmp::read).unwrap_or_default();
        let own = decoder.find_tag(Tag::ImageDescription).ok().flatten();
        let own = own.and_then(|value| value.into_string().ok());
        Ok(Self { parameters: own.or(described).filter(|text| !text.is_empty()), settings })
    }
}

/// The settings' JSON of a TIFF this program wrote; `None` when it carries none.
pub fn read_settings_tiff(path: &Path) -> io::Result<Option<String>> {
    let read = || -> Result<Option<String>, TiffError> {
        let mut decoder = Decoder::new(BufReader::new(File::open(path)?))?;
        Ok(TiffText::read(&mut decoder)?.settings)
    };
    read().map_err(|error| match error {
        TiffError::IoError(error) => error,
        other => io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{other}; a TIFF that gigasmith wrote is needed"),
        ),
    })
}
