{-# LANGUAGE ForeignFunctionInterface #-}
-- | TCP by way of libc: the compiler's own packages hold no sockets.
module Socket (Socket, accept, close, listen, receive, send) where

import Data.Word (Word16, Word8)
import Foreign (Ptr, allocaBytes, nullPtr, pokeByteOff, shiftR, with)
import Foreign.C (CInt (..), CSize (..), peekCStringLen, throwErrnoIfMinus1, throwErrnoIfMinus1_, withCStringLen)
import System.Posix.Types (CSsize (..))

newtype Socket = Socket CInt

foreign import ccall unsafe "socket" c_socket :: CInt -> CInt -> CInt -> IO CInt
foreign import ccall unsafe "setsockopt" c_setsockopt :: CInt -> CInt -> CInt -> Ptr CInt -> CInt -> IO CInt
foreign import ccall unsafe "bind" c_bind :: CInt -> Ptr Word8 -> CInt -> IO CInt
foreign import ccall unsafe "listen" c_listen :: CInt -> CInt -> IO CInt
foreign import ccall safe "accept" c_accept :: CInt -> Ptr Word8 -> Ptr CInt -> IO CInt
foreign import ccall safe "recv" c_recv :: CInt -> Ptr a -> CSize -> CInt -> IO CSsize
foreign import ccall safe "send" c_send :: CInt -> Ptr a -> CSize -> CInt -> IO CSsize
foreign import ccall unsafe "close" c_close :: CInt -> IO CInt

-- | Listens on all addresses of the container.
listen :: Int -> IO Socket
listen port = do
  fd <- throwErrnoIfMinus1 "socket" (c_socket afInet sockStream 0)
  with 1 $ \one -> throwErrnoIfMinus1_ "setsockopt" (c_setsockopt fd solSocket soReuseAddr one 4)
  -- struct sockaddr_in: family in the machine's order, port in the network's, any address.
  allocaBytes 16 $ \address -> do
    mapM_ (\i -> pokeByteOff address i (0 :: Word8)) [0 .. 15]
    pokeByteOff address 0 (fromIntegral afInet :: Word16)
    pokeByteOff address 2 (fromIntegral (port `shiftR` 8) :: Word8)
    pokeByteOff address 3 (fromIntegral port :: Word8)
    throwErrnoIfMinus1_ "bind" (c_bind fd address 16)
  throwErrnoIfMinus1_ "listen" (c_listen fd 64)
  pure (Socket fd)
  where
    afInet = 2
    sockStream = 1
    solSocket = 1
    soReuseAddr = 2

accept :: Socket -> IO Socket
accept (Socket fd) = Socket <$> throwErrnoIfMinus1 "accept" (c_accept fd nullPtr nullPtr)

-- | What arrives first, at most 4 KiB.
receive :: Socket -> IO String
receive (Socket fd) = allocaBytes size $ \buffer -> do
  count <- throwErrnoIfMinus1 "recv" (c_recv fd buffer (fromIntegral size) 0)
  peekCStringLen (buffer, fromIntegral count)
  where
    size = 4096

-- | Sends all of it, short as it is.
send :: Socket -> String -> IO Int
send (Socket fd) text = withCStringLen text $ \(buffer, size) ->
  fromIntegral <$> throwErrnoIfMinus1 "send" (c_send fd buffer (fromIntegral size) msgNoSignal)
  where
    msgNoSignal = 0x4000

close :: Socket -> IO ()
close (Socket fd) = throwErrnoIfMinus1_ "close" (c_close fd)
