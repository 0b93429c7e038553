"""Opening a clip that a stranger made: local files only, known containers only, a bounded picture size."""

import stat
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError

from toonstream.errors import InputError

__all__ = ["FORMATS", "MAX_PIXELS", "open_clip"]

# The largest picture that is decoded: 8K UHD. A decoded picture takes up to 8 bytes a pixel, several are
# alive in the decoder at once, and a file of a few kilobytes can claim any size.
MAX_PIXELS = 7680 * 4320

# Containers only. Playlists and scripts (hls, dash, concat, sdp, image sequences, …) name other files and
# addresses, which must not be opened on behalf of a clip, whatever the clip calls itself.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,live_flv,"
    "asf,ogg,gif,apng,webp_anim,mxf,dv,yuv4mpegpipe,nut,rm,wtv,swf,vc1,h263,h261,mjpeg,"
    "wav,mp3,aac,flac,w64,aiff,caf,ac3,eac3"  # no pictures in these, but then the error can say so
)


def open_clip(path: Path, *, decodes: bool = True) -> InputContainer:
    """Open a local clip for reading; the caller closes it.

    Args:
        path: of the clip.
        decodes: whether to look into its packets, too, for what the container does not say.

    Raises:
        InputError: the path is no file, is empty, may not be read, or holds no clip.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise InputError(f"{path} is a directory: name one clip inside it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file: copy the clip to a file first")
        if status.st_size == 0:
            raise InputError(f"{path} is empty (0 bytes): copy or download the clip again")
        return av.open(
            f"file:{path}",  # with the protocol spelt out, a colon in a name is only a colon
            mode="r",
            options={"max_pixels": str(MAX_PIXELS)},
            container_options={
                "protocol_whitelist": "file",
                "format_whitelist": FORMATS,
                **({} if decodes else {"codec_whitelist": "none"}),
            },
            metadata_errors="replace",
        )
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: check the name of the clip") from error
    except PermissionError as error:
        raise InputError(f"{path} may not be read: change its permissions, or copy it") from error
    except (FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"{path} cannot be read as a video clip ({reason}): it is damaged or of another kind"
        ) from error
