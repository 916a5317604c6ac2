"""The one way to open a file for FFmpeg: only formats that hold a film themselves, and only this file."""

import os

import av

# A frame of 8192 x 4320 (8K) and what its codec pads it with. A decoder may keep 16 frames: 2 GB at this size.
MAX_PIXELS = 8192 * 4608
# FFmpeg may decode a frame to describe a stream. It gives no size for a larger one, so that the error cannot name it.
MAX_DESCRIBED_PIXELS = 4 * MAX_PIXELS
# FFmpeg's names of the formats that are opened. Absent are those that open other files or addresses (concat, hls, dash,
# imf, sdp, rtsp, image2, vobsub, mlv, webm_dash_manifest), devices, text that is drawn as pictures, and sound alone.
CONTAINERS = (
    "3dostr 4xm apng asf asf_o avi cine dhav dv dxa filmstrip flic flv gif gxf iff ifv ingenient iv8 ivf ivr "
    "jpegxl_anim kux live_flv lmlm4 luodat lvf lxf matroska mgsts mjpeg mjpeg_2000 mods moflex mov mpeg mpegts "
    "mpegvideo mpjpeg mtv mv mxf mxg nsv nut nuv ogg pmp psxstr pva r3d rm ser smjpeg swf ty usm vivo wtv xmv "
    "yuv4mpegpipe"
)
GAME_FORMATS = (
    "anm apm argo_brp avs bethsoftvid bfi bink bmv brstm c93 cdxl derf dfa dsicin ea film_cpk gdv hnm hxvs idcin "
    "ipmovie ipu jv mm mvi paf pdv rl2 roq rpl sdx sga siff smk smush thp tiertexseq tmv vividas vmd wc3movie "
    "wsvqa xmd yop"
)
RAW_STREAMS = (
    "apv av1 avs2 avs3 cavsvideo dirac dnxhd evc h261 h263 h264 hevc m4v obu rawvideo v210 v210x vc1 vc1test vvc"
)
IMAGES = (
    "bmp_pipe dds_pipe dpx_pipe exr_pipe gif_pipe hdr_pipe ico j2k_pipe jpeg_pipe jpegls_pipe jpegxl_pipe pam_pipe "
    "pbm_pipe pcx_pipe pgm_pipe png_pipe ppm_pipe psd_pipe qoi_pipe sgi_pipe sunrast_pipe tiff_pipe webp_pipe xwd_pipe"
)
# In these a file without a film is recognised, and the error says so.
SOUND = "aac ac3 aiff amr ape au caf eac3 flac mp3 tta w64 wav wv"
PICTURES = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
OPENED_FORMATS = (CONTAINERS, GAME_FORMATS, RAW_STREAMS, IMAGES, SOUND)
FORMAT_REFUSED = (
    "its format is not opened: it is a playlist, script or image sequence that refers to other files, or not a film"
)


def open_media(path) -> av.container.InputContainer:
    """Open a file of one of `OPENED_FORMATS`, whatever its name; nothing else is opened on its behalf.

    Raises: OSError, av.FFmpegError as FFmpeg does; av.error.ArgumentError if its format is another one.
    """
    formats = " ".join(OPENED_FORMATS).replace(" ", ",")
    return av.open(
        os.path.abspath(path),  # so that FFmpeg takes no colon for a protocol
        metadata_errors="replace",
        options={"max_pixels": str(MAX_DESCRIBED_PIXELS)},
        container_options={"format_whitelist": formats, "protocol_whitelist": "file"},
    )


def find_film(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return FFmpeg's best video stream; never a picture that is attached to the file, such as a cover."""
    films = [stream for stream in container.streams.video if not stream.disposition & PICTURES]
    best = container.streams.best("video")
    if best in films:
        return best
    return max(films, key=lambda stream: stream.frames, default=None)
